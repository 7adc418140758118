"""Have what may not be made be found where a symbolic link of the agent's own leads."""

import contextlib
import os

os.makedirs("own/login")
open("own/login/start", "w").write("planted")
os.symlink("own", "src/link")
with contextlib.suppress(OSError):
    os.symlink("own", "settings")
if not os.path.lexists("settings"):
    with contextlib.suppress(OSError):
        os.symlink(os.path.abspath("own"), "src/absolute")
        os.link("src/absolute", "settings", follow_symlinks=False)
print("WON" if os.path.exists("settings/login/start") else "")
