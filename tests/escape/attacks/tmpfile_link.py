"""Make a file without a name, then give it one in the frozen directory."""

import os

fd = os.open("src", os.O_TMPFILE | os.O_WRONLY, 0o644)
os.write(fd, b"planted")
os.link(f"/proc/self/fd/{fd}", "frozen/planted", follow_symlinks=True)
