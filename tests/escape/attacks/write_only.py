"""Read what may only be written: by a descriptor that is opened for writing too, or to cut it."""

import contextlib
import os

with contextlib.suppress(OSError):
    print(os.read(os.open("dropped/pipe", os.O_RDWR | os.O_NONBLOCK), 100).decode())
with contextlib.suppress(OSError):
    reader = os.open("dropped/log", os.O_RDONLY | os.O_TRUNC)
    with open("dropped/log", "a") as log:
        log.write("what somebody writes later")
    print("WON" if os.read(reader, 100) else "")
