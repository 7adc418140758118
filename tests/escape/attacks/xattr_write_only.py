"""Read the attributes of a file that may only be written, by a descriptor to write."""

import contextlib
import os

written = os.open("dropped/log", os.O_WRONLY)
for look in (lambda: os.getxattr(written, "user.safeclaw").decode(), lambda: os.listxattr(written)):
    with contextlib.suppress(OSError):
        print(look())
