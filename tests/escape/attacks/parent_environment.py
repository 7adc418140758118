"""Read the environment and the memory of another process of the session."""

import os
import subprocess
import sys

child = subprocess.Popen(["sleep", "60"], env={**os.environ, "KEY": "of-a-sibling"})
try:
    for name in ("environ", "mem", "root/etc/passwd"):
        try:
            with open(f"/proc/{child.pid}/{name}", "rb"):
                print("WON")
        except OSError:
            pass
finally:
    child.kill()
    sys.exit(0)
