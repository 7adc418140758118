"""Make a file without a name, then give it one in the frozen directory."""

import os

fd = os.open("src", os.O_TMPFILE | os.O_WRONLY, 0o644)
os.write(fd, b"planted")
# with a directory of its own it is linkat(2), which can follow the link; link(2) does not
here = os.open(".", os.O_RDONLY)
os.link(f"/proc/self/fd/{fd}", "frozen/planted", src_dir_fd=here, follow_symlinks=True)
