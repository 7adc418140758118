"""Have a denied program run as the interpreter of a script of the agent's, and behind another."""

import os
import subprocess

for name, interpreter in (
    ("src/one", os.path.abspath("bin/xd")),
    ("src/two", os.path.abspath("src/one")),
):
    with open(name, "w") as script:
        script.write(f"#!{interpreter}\n")
    os.chmod(name, 0o755)
for name in ("src/one", "src/two"):
    try:
        subprocess.run([name], check=False)
    except OSError:
        pass
