"""Reach a server on the host's loopback, by each way there is to spell it."""

import socket

port = int(open("port").read())
for family, host in (
    (socket.AF_INET, "127.0.0.1"),
    (socket.AF_INET, "0.0.0.0"),
    (socket.AF_INET6, "::ffff:127.0.0.1"),
):
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as sock:
            sock.sendto(b"hello", (host, port))
        with socket.socket(family, socket.SOCK_STREAM) as sock:
            sock.connect((host, port))
        print("WON")
    except OSError:
        pass
