"""Give the secret a second name by its descriptor: AT_EMPTY_PATH, and /proc/self/fd."""

import ctypes
import os

fd = os.open("secrets/key", os.O_PATH)
ctypes.CDLL(None).linkat(fd, b"", -100, b"src/second", 0x1000)
try:
    os.link(f"/proc/self/fd/{fd}", "src/third", follow_symlinks=True)
except OSError:
    pass
for name in ("src/second", "src/third"):
    if os.path.exists(name):
        print(open(name).read())
