"""Read the secret through a symbolic link that the agent makes."""

import os

os.symlink("../secrets/key", "src/link")
print(open("src/link").read())
