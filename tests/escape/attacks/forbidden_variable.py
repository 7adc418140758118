"""Start a program with a variable that the policy forbids, in the way that is asked for."""

import os
import subprocess
import sys

LOADERS = ("/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1")
way = sys.argv[4]
loader = next(os.path.realpath(path) for path in LOADERS if os.path.exists(path))
words, more = ["/usr/bin/printenv", "LOOT_ONE"], {**os.environ, "LOOT_ONE": "WON"}
match way:
    case "given" | "descriptor":
        pass
    case "env":
        words, more = ["/usr/bin/env", "LOOT_ONE=WON", *words], dict(os.environ)
    case "shell":
        words, more = ["/bin/sh", "-c", "LOOT_ONE=WON printenv LOOT_ONE"], dict(os.environ)
    case "script":
        with open("src/script", "w") as script:
            script.write("#!/bin/sh\necho $LOOT_ONE\n")
        os.chmod("src/script", 0o755)
        words = ["src/script"]
    case "loader":
        words = [loader, *words]
    case "preload":
        words, more = ["/usr/bin/true"], {**os.environ, "LD_PRELOAD": "./bin/preload.so"}
    case "loader-preload":
        words, more = [loader, "--preload", "./bin/preload.so", "/usr/bin/true"], dict(os.environ)
    case "loader-audit":
        words, more = [loader, "--audit", "./bin/audit.so", "/usr/bin/true"], dict(os.environ)
    case "audit":
        words, more = ["/usr/bin/true"], {**os.environ, "LD_AUDIT": "./bin/audit.so"}
    case _:
        raise SystemExit(f"no such way: {way}")
if way == "descriptor":
    os.execve(os.open(words[0], os.O_RDONLY), words, more)
subprocess.run(words, env=more, check=False)
