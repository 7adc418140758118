"""Run a denied program from memory: memfd_create, then by descriptor and through /proc."""

import os

fd = os.memfd_create("copy", 0)
with open("/usr/bin/echo", "rb") as program:
    os.write(fd, program.read())
for name in (fd, f"/proc/self/fd/{fd}", f"/dev/fd/{fd}"):
    child = os.fork()
    if not child:
        try:
            os.execve(name, ["echo", "WON"], dict(os.environ))
        finally:
            os._exit(1)
    os.waitpid(child, 0)
