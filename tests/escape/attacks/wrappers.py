"""Run a denied program by way of allowed ones."""

import os
import subprocess

os.symlink("../bin/xd", "src/other-name")
os.symlink("../bin", "src/place")
for words in (
    ["env", "bin/xd"],
    ["sh", "-c", "exec bin/xd"],
    ["xargs", "-a", "src/words", "bin/xd"],
    ["find", "bin/xd", "-exec", "{}", ";"],
    ["src/other-name"],
    ["src/place/xd"],
    ["timeout", "5", "bin/xd"],
    ["nice", "bin/xd"],
):
    try:
        open("src/words", "w").write("one\n")
        subprocess.run(words, check=False)
    except OSError:
        pass
