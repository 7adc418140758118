"""Set a file's flags (FS_IOC_SETFLAGS) through a descriptor that may only read it."""

import fcntl
import os
import struct

fd = os.open("frozen/f", os.O_RDONLY)
fcntl.ioctl(fd, 0x40086602, struct.pack("l", 0x40 | 0x80))
