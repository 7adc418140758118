"""Move a directory to where a rule makes an exception of the one that denies what lies in it."""

import os

os.rename("kept", "spared")
print(open("spared/secrets/key").read())
