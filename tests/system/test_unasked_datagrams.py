"""Datagrams to a socket that no rule lets be bound, where the network is the host's."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from tests.system.conftest import Person, options_here
from tests.system.outside import TRY, policy

#: Says at which port the kernel has bound it, and afterwards what has come there.
HEARS = (
    "import errno, json, os, select, socket, sys\n"
    + TRY
    + """
family = socket.AF_INET6 if ":" in sys.argv[1] else socket.AF_INET
sock = socket.socket(family, socket.SOCK_DGRAM)
said = [attempt(lambda: sock.bind((sys.argv[1], 0))), attempt(lambda: sock.send(b"to nobody"))]
print(sock.getsockname()[1], flush=True)
sys.stdin.readline()
said.append(attempt(lambda: sock.recv(100, socket.MSG_DONTWAIT).decode()))
print(json.dumps(said))
"""
)
#: The supervisor with the defence off: the filter lets all of each datagram through.
HEARING = """
import struct, sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import deaf
deaf._NOTHING.raw = struct.pack("=HBBI", 0x06, 0, 0, 0xFFFFFFFF)
sys.exit(main())
"""


def heard(person: Person, where: str) -> list[str]:
    """Return what an agent says that no rule lets use the network, and that is sent something."""
    chosen = person.write("policy.yaml", policy())
    person.write("agent.py", HEARS)
    person.stdin = subprocess.PIPE
    run = ("run", "--policy", str(chosen), *options_here("landlock"), "--", "/usr/bin/python3")
    started = person.popen(*run, "agent.py", where)
    assert started.stdout is not None
    assert started.stdin is not None
    port = int(started.stdout.readline())
    family = socket.AF_INET6 if ":" in where else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sender:
        sender.sendto(b"orders", (where, port))
    started.stdin.write("sent\n")
    done = person.finish(started)
    assert done.returncode == 0, done.stderr
    found: list[str] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("where", ["127.0.0.1", "::1"])
def test_nothing_is_heard_that_no_rule_lets_come(person: Person, where: str) -> None:
    assert heard(person, where) == ["EACCES", "EDESTADDRREQ", "EAGAIN"]

    driver = person.base / "driver.py"
    driver.write_text(HEARING)
    person.own()
    person.program[1:] = [str(driver)]
    assert heard(person, where) == ["EACCES", "EDESTADDRREQ", "orders"]


#: Each way that a rule can let one be used, of a socket that is watched before.
USES = """
import os, select, socket
served = socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
served.setsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST, 1)
print(os.get_blocking(served.fileno()), os.get_inheritable(served.fileno()))
watch = select.epoll()
watch.register(served, select.EPOLLIN)
served.bind(("127.0.0.1", 0))
where = served.getsockname()
def connected(sock):
    sock.connect(where)
    sock.send(b"connected")
for way in (
    lambda sock: sock.sendto(b"sendto", where),
    lambda sock: sock.sendmsg([b"sendmsg"], [], 0, where),
    connected,
):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        way(sock)
        watch.poll()
        served.sendto(*served.recvfrom(100))
        print(sock.recv(100).decode())
print(served.getsockopt(socket.SOL_SOCKET, socket.SO_BROADCAST))
"""


def test_what_a_rule_allows_is_used_and_heard_as_outside(person: Person) -> None:
    chosen = person.write("policy.yaml", policy("action: network, host: 127.0.0.1, effect: allow"))
    person.write("agent.py", USES)
    options = ("--policy", str(chosen), *options_here("landlock"))
    done = person.safeclaw("run", *options, "--", "/usr/bin/python3", "agent.py")
    assert done.stdout.split() == ["False", "False", "sendto", "sendmsg", "connected", "1"], (
        done.stderr
    )
