"""Read a file outside of the workspace, by every name there is for it."""

import sys

depth = "../" * 40
for path in (sys.argv[1] + "/key", depth + sys.argv[1] + "/key"):
    try:
        print(open(path).read())
    except OSError:
        pass
