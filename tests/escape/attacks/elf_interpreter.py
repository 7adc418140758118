"""Have the kernel map and run a file that may not be read: as a program's ELF interpreter."""

import os
import re
import shutil
import subprocess

# a program of our own, that names the secret loader where it named the system's (elf(5), PT_INTERP)
shutil.copy("/usr/bin/echo", "src/own")
with open("src/own", "r+b") as program:
    found = re.search(rb"/lib[^\0]*/ld-linux[^\0]*\0", program.read())
    assert found is not None
    program.seek(found.start())
    program.write(b"secrets/loader".ljust(len(found[0]), b"\0"))
os.chmod("src/own", 0o755)
subprocess.run(["src/own", "WON"], check=False)
# and behind a script
with open("src/script", "w") as script:
    script.write("#!src/own WON\n")
os.chmod("src/script", 0o755)
subprocess.run(["src/script"], check=False)
