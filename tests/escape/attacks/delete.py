"""Delete what is frozen, by name and by an open directory."""

import os

folder = os.open("frozen", os.O_PATH)
try:
    os.unlink("f", dir_fd=folder)
except OSError:
    os.unlink("src/../frozen/f")
