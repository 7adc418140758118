"""Read an attribute of a file that may not be read, by each name and descriptor there is."""

import contextlib
import os

held = os.open("secrets/key", os.O_PATH)
folder = os.open("secrets", os.O_PATH)
os.symlink("../secrets/key", "src/link")
for subject in (
    "secrets/key",
    "src/../secrets/key",
    "src/link",
    f"/proc/self/fd/{held}",
    f"/proc/self/fd/{folder}/key",
    f"/dev/fd/{held}",
    held,
):
    for follow in (True, False):
        with contextlib.suppress(OSError, ValueError):
            print(os.getxattr(subject, "user.safeclaw", follow_symlinks=follow).decode())
