"""Change the metadata of a file that may only be read, through a descriptor of it."""

import contextlib
import os

fd = os.open("frozen/f", os.O_RDONLY)
with contextlib.suppress(OSError):
    os.fchmod(fd, 0o666)
with contextlib.suppress(OSError):
    os.chmod("frozen/f", 0o666)
with contextlib.suppress(OSError):
    os.utime(fd, (1, 1))
with contextlib.suppress(OSError):
    os.setxattr(fd, "user.mark", b"1")
with contextlib.suppress(OSError):
    os.chmod(f"/proc/self/fd/{fd}", 0o666)
