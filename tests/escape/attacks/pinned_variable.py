"""Start a program without the variable that the policy pins, or with another value of it."""

import os
import subprocess
import sys

others = {name: value for name, value in os.environ.items() if name != "PINNED"}
match sys.argv[4]:
    case "changed":
        subprocess.run(
            ["/usr/bin/printenv", "PINNED"], env={**others, "PINNED": "WON"}, check=False
        )
    case "absent":
        subprocess.run(["/bin/sh", "-c", "echo ${PINNED-WON}"], env=others, check=False)
    case "cleared":
        script = "echo ${PINNED-WON}"
        subprocess.run(["/usr/bin/env", "-i", "/bin/sh", "-c", script], check=False)
    case way:
        raise SystemExit(f"no such way: {way}")
