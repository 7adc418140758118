"""Run a denied program by a descriptor, open or O_PATH."""

import os

for flags in (os.O_RDONLY, os.O_PATH):
    fd = os.open("bin/xd", flags)
    child = os.fork()
    if not child:
        try:
            os.execve(fd, ["x"], dict(os.environ))
        finally:
            os._exit(1)
    os.waitpid(child, 0)
