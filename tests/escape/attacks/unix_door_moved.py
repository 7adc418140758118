"""Give a Unix socket that no rule names a name that one does: by links and renames."""

import ctypes
import os
import socket


def exchange(old: str, new: str) -> None:
    """Have each the other's name (renameat2(2)), beginning with the one that may be reached."""
    with open(new, "w"):
        pass
    ctypes.CDLL(None).renameat2(-100, new.encode(), -100, old.encode(), 2)


for way in (os.link, exchange, os.rename):
    try:
        way("door-b", "src/door-a")
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
            sock.connect("src/door-a")
        print("WON")
    except OSError:
        pass
    if os.path.exists("src/door-a"):
        os.unlink("src/door-a")
