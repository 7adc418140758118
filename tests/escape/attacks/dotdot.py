"""Read the secret by a detour, with doubled slashes and through a link to a directory."""

import os

os.symlink("..", "src/up")
for path in ("src/../secrets/key", "src//.././secrets//key", "src/up/secrets/key"):
    try:
        print(open(path).read())
    except OSError:
        pass
