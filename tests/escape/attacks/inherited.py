"""Read a descriptor that the person's shell had open when the session began."""

import os

for fd in range(3, 1024):
    try:
        os.write(1, os.pread(fd, 100, 0))
    except OSError:
        pass
