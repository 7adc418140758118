"""Give the secret a second name by its descriptor: AT_EMPTY_PATH, and /proc/self/fd."""

import ctypes
import os

fd = os.open("secrets/key", os.O_PATH)
ctypes.CDLL(None).linkat(fd, b"", -100, b"src/second", 0x1000)
try:
    # with a directory of its own it is linkat(2), which can follow the link; link(2) does not
    here = os.open(".", os.O_RDONLY)
    os.link(f"/proc/self/fd/{fd}", "src/third", src_dir_fd=here, follow_symlinks=True)
except OSError:
    pass
for name in ("src/second", "src/third"):
    if os.path.exists(name):
        print(open(name).read())
