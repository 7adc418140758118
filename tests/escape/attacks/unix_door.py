"""Connect to a Unix socket that no rule names: by path, by link, and without connect."""

import os
import socket

os.symlink("../door-b", "src/door")
for way in ("door-b", "src/door", "./src/../door-b"):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.sendto(b"hello", way)
            print("WON")
        except OSError:
            pass
        try:
            sock.connect(way)
            print("WON")
        except OSError:
            pass
