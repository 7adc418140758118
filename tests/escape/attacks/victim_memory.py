"""Read a process that is not of the session: its environment, memory, descriptors and places."""

import contextlib
import os

pid = int(open("pid").read())
for name in ("environ", "maps", "mem", "auxv", "stack", "syscall", "task/{0}/environ"):
    with contextlib.suppress(OSError):
        print(open(f"/proc/{pid}/{name.format(pid)}", "rb").read())
for name in ("fd", "map_files", "task", "ns", "fdinfo"):
    with contextlib.suppress(OSError):
        print("WON", os.listdir(f"/proc/{pid}/{name}"))
for name in ("fd/0", "root/etc/passwd", "cwd/.", "exe"):
    with contextlib.suppress(OSError):
        os.close(os.open(f"/proc/{pid}/{name}", os.O_RDONLY))
        print("WON", name)
