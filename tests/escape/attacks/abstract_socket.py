"""Connect to an abstract Unix socket of the host."""

import hashlib
import os
import socket

name = "\0safeclaw-" + hashlib.sha256(os.getcwd().encode()).hexdigest()[:16]
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.connect(name)
print("WON")
