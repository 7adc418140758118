"""Map a file that may only be read, and reopen it for writing through map_files."""

import mmap
import os

fd = os.open("frozen/f", os.O_RDONLY)
mapped = mmap.mmap(fd, 0, mmap.MAP_SHARED, mmap.PROT_READ)
for line in open("/proc/self/maps"):
    if line.rstrip().endswith("/frozen/f"):
        os.write(os.open("/proc/self/map_files/" + line.split()[0], os.O_WRONLY), b"thawed")
