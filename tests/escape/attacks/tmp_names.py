"""Read, take over or link a file of the person's that another program keeps in /tmp."""

import contextlib
import os

name = open("name").read()
for path in (
    f"/tmp/{name}",
    f"/tmp/./{name}",
    f"/tmp/../tmp/{name}",
    f"/proc/self/root/tmp/{name}",
    f"/proc/thread-self/cwd/{'../' * 20}tmp/{name}",
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
    folder = os.open("/tmp", os.O_PATH)
    print(open(os.open(name, os.O_RDONLY, dir_fd=folder)).read())
with contextlib.suppress(OSError):
    os.unlink(f"/tmp/{name}")
