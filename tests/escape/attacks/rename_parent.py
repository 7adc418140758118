"""Rename the directory that holds the denied one, and read by the new name."""

import os

os.rename("held", "free")
print(open("free/deep/key").read())
