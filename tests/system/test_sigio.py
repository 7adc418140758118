"""O_ASYNC: a server's workers are woken by signals about their sockets, as outside."""

from __future__ import annotations

import pytest

from tests.system.conftest import Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**", effect: allow}
  - {action: file.write, path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: Prints who is signalled, and which flags are in force afterwards.
AGENT = """
import fcntl, os, signal, socket, struct, termios
signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGIO,))

def signalled(here, say):
    say(b"x")
    found = signal.sigtimedwait((signal.SIGIO,), 0)
    return found is not None

def by_request(fd):
    fcntl.ioctl(fd, termios.FIOASYNC, struct.pack("i", 1))

def by_flags(fd):
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_ASYNC | os.O_NONBLOCK)

for way in (by_request, by_flags):
    here, there = socket.socketpair()
    out, into = os.pipe()
    for fd, say in ((here.fileno(), there.send), (out, lambda data: os.write(into, data))):
        way(fd)
        flags = fcntl.fcntl(fd, fcntl.F_GETFL)
        nobody = signalled(fd, say)
        fcntl.fcntl(fd, fcntl.F_SETOWN, os.getpid())
        mine = signalled(fd, say)
        fcntl.ioctl(fd, termios.FIOASYNC, struct.pack("i", 0))
        no_more = signalled(fd, say)
        print(way.__name__, bool(flags & os.O_ASYNC), bool(flags & os.O_NONBLOCK), nobody, mine,
              no_more)

null = os.open("/dev/null", os.O_RDONLY)
for way in (by_request, by_flags):
    try:
        way(null)
    except OSError as problem:
        print(way.__name__, problem.strerror)
print("flags", fcntl.fcntl(null, fcntl.F_GETFL) & (os.O_ASYNC | os.O_NONBLOCK))
for wrong in (lambda: by_request(999), lambda: by_flags(999),
              lambda: fcntl.fcntl(999, fcntl.F_SETFL, os.O_ASYNC)):
    try:
        wrong()
    except OSError as problem:
        print(problem.strerror)
"""


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_files_owner_is_signalled_and_no_terminals(person: Person, isolation: str) -> None:
    chosen = person.write("policy.yaml", POLICY)
    person.write("agent.py", AGENT)
    started = person.start(["/usr/bin/python3", "agent.py"], person.workspace)
    outside = person.finish(started).stdout.splitlines()
    options = ("--no-prompt", "--policy", str(chosen), *options_here(isolation))
    done = person.safeclaw("run", *options, "--", "/usr/bin/python3", "agent.py")
    inside = done.stdout.splitlines()
    served = [
        "by_request True False False True False",
        "by_request True False False True False",
        "by_flags True True False True False",
        "by_flags True True False True False",
    ]
    bad = ["Bad file descriptor"] * 3
    assert outside[:4] == served
    assert outside[-3:] == bad
    refused = ["by_request Operation not permitted", "by_flags Operation not permitted"]
    assert inside == [*served, *refused, "flags 0", *bad], done.stderr
