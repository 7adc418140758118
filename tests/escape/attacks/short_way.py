"""Open a name until it is known and opened the short way; then let it lead elsewhere."""

import contextlib
import os

for folder in ("src/one", "src/one/deep"):
    os.mkdir(folder)
for path in ("src/one/key", "src/one/deep/key", "src/plain"):
    open(path, "w").write("mine")
os.symlink("one", "src/cur")
here = os.getcwd()
names = ("src/plain", "src/cur/key", "src/one/deep/key", f"{here}/src/cur/key", "src/one/key")


def visit() -> None:
    for name in names:
        with contextlib.suppress(OSError):
            print(open(name).read())


for _ in range(300):
    visit()
os.unlink("src/plain")
os.symlink("../secrets/key", "src/plain")
os.unlink("src/cur")
os.symlink("../secrets", "src/cur")
visit()
os.rename("src/one/deep", "src/one/was")
os.symlink("../../secrets", "src/one/deep")
visit()
os.rename("src/one", "src/two")
os.symlink("../secrets", "src/one")
visit()
