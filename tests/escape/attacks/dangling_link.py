"""Create a file in the frozen directory through a dangling symbolic link."""

import os

os.symlink("../frozen/planted", "src/dangling")
open("src/dangling", "w").write("planted")
