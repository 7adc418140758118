"""Where a socket serves is where bind(2) has put it, and not where a connection has."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.conftest import Person, options_here
from tests.system.outside import policy
from tests.system.test_stall import approval

RULES = policy(
    "action: [network.connect, network.bind], host: 127.77.0.1, effect: allow",
    "action: network.bind, host: 127.0.0.1, effect: ask",
)
#: The kernel binds a socket that connects.  While it is judged whether that may be served on, it
#: lets go of the connection, and the kernel binds it anew: to every address of the host.
AGENT = """\
import ctypes, errno, socket, sys, threading

def listen(sock):
    try:
        sock.listen()
        print(sock.getsockname()[0], flush=True)
    except OSError as problem:
        print(errno.errorcode[problem.errno], flush=True)

server, bound, sock = (socket.socket() for _ in range(3))
server.bind(("127.77.0.1", 0))
listen(server)
sock.connect(server.getsockname())
listening = threading.Thread(target=listen, args=(sock,))
listening.start()
if sys.argv[1] == "let go":
    input()
    ctypes.CDLL(None).connect(sock.fileno(), bytes(16), 16)
    print("let go", flush=True)
listening.join()
listen(socket.socket())

# an address that bind has given stays, whatever becomes of connections from it
bound.bind(("127.77.0.1", 0))
bound.connect(server.getsockname())
listen(bound)
ctypes.CDLL(None).connect(bound.fileno(), bytes(16), 16)
listen(bound)
"""
#: The supervisor with the defence off: judged is the name that the socket has at the moment.
AS_NAMED = """
import ipaddress, sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import network
network._everywhere = lambda sock: ipaddress.ip_address(sock.getsockname()[0])
sys.exit(main())
"""
KEPT = ["EINVAL", "127.77.0.1"]


def start(person: Person, isolation: str, how: str) -> subprocess.Popen[str]:
    person.stdin = subprocess.PIPE
    person.write("agent.py", AGENT)
    chosen = person.write("policy.yaml", RULES)
    options = ("--policy", str(chosen), "--no-prompt", *options_here(isolation))
    return person.popen("run", *options, "--", "/usr/bin/python3", "agent.py", how)


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_what_a_connection_has_bound_is_served_on_by_no_rule_for_that(
    person: Person, isolation: str
) -> None:
    done = person.finish(start(person, isolation, "at once"))
    # in full isolation one that has not been outside is the session's own
    fresh = "0.0.0.0" if isolation == "full" else "EACCES"
    assert done.stdout.split() == ["127.77.0.1", "EACCES", fresh, *KEPT], done.stderr

    driver = person.base / "driver.py"
    driver.write_text(AS_NAMED)
    person.own()
    person.program[1:] = [str(driver)]
    running = start(person, isolation, "let go")
    assert running.stdout is not None
    assert running.stdin is not None
    question = approval(running)
    running.stdin.write("\n")
    running.stdin.flush()
    assert [running.stdout.readline() for _ in range(2)] == ["127.77.0.1\n", "let go\n"]
    yes = person.safeclaw("approvals", "approve", question)
    assert yes.returncode == 0, yes.stderr
    assert running.stdout.readline() == "0.0.0.0\n"
    person.finish(running)
