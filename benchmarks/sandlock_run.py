"""Run a command under sandlock: ``python sandlock_run.py COMMAND...``."""

from __future__ import annotations

import os
import sys

from sandlock import Sandbox


def main() -> int:
    """Give the command what ``safeclaw run`` gives it in these comparisons: it may read."""
    system = ("/usr", "/lib", "/lib64", "/bin", "/etc", "/proc", "/dev")
    readable = [*(path for path in system if os.path.exists(path)), os.getcwd()]
    return int(Sandbox(fs_readable=readable).run_interactive(sys.argv[1:]))


if __name__ == "__main__":
    sys.exit(main())
