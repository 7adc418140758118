"""Reach the secret through the magic links of /proc."""

import os

here = os.getcwd()
for start in ("/proc/self/root" + here, "/proc/self/cwd", f"/proc/{os.getpid()}/root" + here,
              f"/proc/{os.getppid()}/cwd", "/proc/thread-self/cwd"):  # fmt: skip
    try:
        print(open(start + "/secrets/key").read())
    except OSError:
        pass
