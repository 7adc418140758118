"""Read, take over or link a file of the person's that another program keeps in /dev/shm."""

import contextlib
import os

name = open("name").read()
for path in (
    f"/dev/shm/{name}",
    f"/dev/shm/./{name}",
    f"/dev/shm/../../dev/shm/{name}",
    f"/proc/self/root/dev/shm/{name}",
    f"/proc/thread-self/cwd/{'../' * 20}dev/shm/{name}",
):
    with contextlib.suppress(OSError):
        print(open(path).read())
    with contextlib.suppress(OSError):
        os.link(path, "src/linked")
        print(open("src/linked").read())
    with contextlib.suppress(OSError):
        os.rename(path, "src/moved")
        print(open("src/moved").read())
    with contextlib.suppress(OSError):
        os.symlink(path, "src/points")
        print(open("src/points").read())
with contextlib.suppress(OSError):
    folder = os.open("/dev/shm", os.O_PATH)
    print(open(os.open(name, os.O_RDONLY, dir_fd=folder)).read())
with contextlib.suppress(OSError):
    os.unlink(f"/dev/shm/{name}")
