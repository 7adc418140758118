"""Have the supervisor open a FIFO that may not be read, if only before it looks what it is."""

import contextlib
import os

open("src/plain", "w").write("mine")
os.mkdir("src/one")
open("src/one/pipe", "w").write("mine")
os.symlink("one", "src/cur")
names = ("src/plain", "src/cur/pipe", os.path.abspath("src/plain"), os.path.abspath("src/cur/pipe"))
for _ in range(50):
    for name in names:
        open(name).read()
os.unlink("src/plain")
os.symlink("../secrets/pipe", "src/plain")
os.unlink("src/cur")
os.symlink("../secrets", "src/cur")
for name in names:
    with contextlib.suppress(OSError):
        os.close(os.open(name, os.O_RDONLY | os.O_NONBLOCK))
        os.close(os.open(name, os.O_RDONLY))
