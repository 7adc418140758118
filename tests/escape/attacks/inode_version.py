"""Set a file's version and extended flags through a descriptor that may only read it.

FS_IOC_SETVERSION under both its numbers, which few file systems have, and FS_IOC_FSSETXATTR,
which most have, tmpfs among them (linux/fs.h): NOATIME and NODUMP are common to all.
"""

import fcntl
import os
import struct

fd = os.open("frozen/f", os.O_RDONLY)
version, flags = struct.pack("l", 4711), struct.pack("5I8x", 0x40 | 0x80, 0, 0, 0, 0)
for request, value in ((0x40087602, version), (0x40086604, version), (0x401C5820, flags)):
    try:
        fcntl.ioctl(fd, request, value)
        print("WON")
    except OSError as problem:
        print(problem)
