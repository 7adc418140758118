"""Have a link made outside, by what the name that a socket is bound to leads up to."""

import os
import socket
import sys

planted = sys.argv[1] + "/planted"
os.makedirs("src/a/b")
os.makedirs("src" + planted)
os.chdir("src/a/b")
# from here that is a directory of ours; from a directory in /tmp it is one outside
with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
    sock.bind(f"../..{planted}/door")
    print(sock.getsockname())
