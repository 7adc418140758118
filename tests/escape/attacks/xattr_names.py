"""List the attributes of a file that may not be read."""

import contextlib
import os

held = os.open("secrets/key", os.O_PATH)
os.symlink("../secrets/key", "src/link")
for subject in ("secrets/key", "src/link", f"/proc/self/fd/{held}", f"/dev/fd/{held}", held):
    for follow in (True, False):
        with contextlib.suppress(OSError, ValueError):
            print(os.listxattr(subject, follow_symlinks=follow))
