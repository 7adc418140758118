"""Give a Unix socket that no rule names a name that one does: by a hard link, and by a rename."""

import os
import socket

for way in (os.link, os.rename):
    try:
        way("door-b", "src/door-a")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("src/door-a")
        print("WON")
    except OSError:
        pass
