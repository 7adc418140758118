"""Read what may only be written: by a descriptor to write too, or that cuts or makes the file."""

import contextlib
import os

with contextlib.suppress(OSError):
    print(os.read(os.open("dropped/pipe", os.O_RDWR | os.O_NONBLOCK), 100).decode())
for name, flags in (("log", os.O_TRUNC), ("new", os.O_CREAT), ("newer", os.O_CREAT | os.O_RDWR)):
    with contextlib.suppress(OSError):
        reader = os.open(f"dropped/{name}", flags, 0o600)
        with open(f"dropped/{name}", "a") as log:
            log.write("what somebody writes later")
        print("WON" if os.read(reader, 100) else "")
