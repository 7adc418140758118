"""Give the host's loopback another address (rtnetlink(7)); taken back again at once.

As ``named`` the request names the kernel: then only the rights of its sender count.
"""

import os
import socket
import struct
import sys

# no other attack's that is mounted meanwhile
ADDRESS = f"127.77.{os.getpid() >> 8 & 255}.{os.getpid() & 255}"


def ask(kind: int, flags: int) -> int:
    body = struct.pack("=BBBBI", socket.AF_INET, 32, 0, 0, 1)
    for name in (2, 1):  # IFA_LOCAL, IFA_ADDRESS
        body += struct.pack("=HH4s", 8, name, socket.inet_aton(ADDRESS))
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        request = struct.pack("=IHHII", 16 + len(body), kind, 5 | flags, 1, 0) + body
        if sys.argv[-1] == "named":
            sock.sendto(request, (0, 0))
        else:
            sock.send(request)
        return int(struct.unpack_from("=i", sock.recv(4096), 16)[0])


if ask(20, 0x400) == 0:  # RTM_NEWADDR, NLM_F_CREATE
    print("WON")
    ask(21, 0)
