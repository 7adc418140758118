"""Messages that no socket takes are not copied: many calls at once would have all of them held."""

from __future__ import annotations

import subprocess

import pytest

from tests.system.conftest import Person, options_here
from tests.system.test_many_arguments import peak

COUNT, SIZE = 48, 16_000_000
POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: "python3 *", effect: allow}
"""
#: So many threads wait to send a little, and want to send much behind that, all of it in one go.
AGENT = f"""\
import ctypes, errno, os, socket, threading

libc = ctypes.CDLL(None, use_errno=True)
class Iovec(ctypes.Structure):
    _fields_ = (("base", ctypes.c_char_p), ("length", ctypes.c_size_t))
class Message(ctypes.Structure):
    _fields_ = (("name", ctypes.c_char_p), ("namelen", ctypes.c_uint32), ("iov", ctypes.c_void_p),
                ("iovlen", ctypes.c_size_t), ("control", ctypes.c_void_p),
                ("controllen", ctypes.c_size_t), ("flags", ctypes.c_int), ("pad", ctypes.c_int),
                ("sent", ctypes.c_uint), ("more", ctypes.c_uint))
much = b"x" * {SIZE}
little, large = Iovec(much, 1), Iovec(much, len(much))
here, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
here.setblocking(False)
try:
    while True:
        here.send(b"x")
except BlockingIOError:
    here.setblocking(True)
answers = []
def send():
    two = (Message * 2)(*(Message(None, 0, ctypes.addressof(one), 1) for one in (little, large)))
    answers.append(libc.sendmmsg(here.fileno(), two, 2, 0))
threads = [threading.Thread(target=send) for _ in range({COUNT})]
for thread in threads:
    thread.start()
print("waiting", flush=True)
input()
there.setblocking(False)
while len(answers) < {COUNT}:
    try:
        there.recv(1)
    except BlockingIOError:
        os.sched_yield()
print(set(answers), flush=True)
try:
    here.send(much)
except OSError as problem:
    print(errno.errorcode[problem.errno], flush=True)
input()
"""
#: The supervisor with the defence off.
COPYING = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import messages
messages._Sending._largest = lambda self: 1 << 30
sys.exit(main())
"""


def peaks(person: Person, isolation: str) -> tuple[int, int]:
    """Return the most memory that the supervisor has had before and after all are sent, in MiB."""
    person.stdin = subprocess.PIPE
    (person.base / "policy.yaml").write_text(POLICY)
    person.write("agent.py", AGENT)
    options = ("--policy", str(person.base / "policy.yaml"), *options_here(isolation))
    with person.popen("run", *options, "--", "/usr/bin/python3", "agent.py") as running:
        assert running.stdin is not None
        assert running.stdout is not None
        assert running.stdout.readline() == "waiting\n"
        before = peak(running.pid)
        running.stdin.write("\n")
        running.stdin.flush()
        # the small one has left each time, and the large one has not
        assert running.stdout.readline() == "{1}\n"
        assert running.stdout.readline() == "EMSGSIZE\n"
        after = peak(running.pid)
        running.stdin.write("\n")
        person.finish(running)
    return before, after


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_what_no_socket_takes_is_not_copied(person: Person, isolation: str) -> None:
    before, after = peaks(person, isolation)
    assert after - before < 100

    driver = person.base / "driver.py"
    driver.write_text(COPYING)
    person.own()
    person.program[1:] = [str(driver)]
    before, after = peaks(person, isolation)
    assert after - before > 100
