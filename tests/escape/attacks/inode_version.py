"""Set a file's generation (FS_IOC_SETVERSION) through a descriptor that may only read it."""

import fcntl
import os
import struct

fd = os.open("frozen/f", os.O_RDONLY)
for request in (0x40087602, 0x40086604):
    try:
        fcntl.ioctl(fd, request, struct.pack("l", 4711))
        print("WON")
    except OSError as problem:
        print(problem)
