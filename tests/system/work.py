"""An agent at work: it makes one new file after the other, and says so on a FIFO.

It is gone when that FIFO ends: every process of it holds the FIFO open.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import struct
import subprocess
from collections.abc import Generator

from tests.system.conftest import Person, fields

AGENT = """\
import itertools, os

said = os.open("fifo", os.O_WRONLY)
for child in range(3):
    if os.fork() == 0:
        os.setsid()  # no group and no terminal leads to it
        break
else:
    child = "first"
for number in itertools.count():
    try:
        open(f"made/{child}-{number}", "x").close()
    except OSError:
        continue  # it never gives up
    os.write(said, b".")
"""


POLICY = """\
version: "1.0"
assurance: {assurance}
rules:
  - {{action: file.write, path: ["made/**", "fifo"], effect: allow, reason: "its work"}}
  - {{action: file.read, path: "**", effect: allow}}
  - {{action: "*", effect: deny}}
"""


#: How long an event that must come may take on a machine that does other things as well.
PATIENCE = 60_000


class Work:
    """An agent at work under ``safeclaw run``."""

    def __init__(self, person: Person, *options: str, assurance: str = "pipelined") -> None:
        self.person = person
        person.write("agent.py", AGENT)
        (person.workspace / "made").mkdir()
        os.mkfifo(person.workspace / "fifo")
        policy = person.base / "work.yaml"
        policy.write_text(POLICY.format(assurance=assurance))
        person.own()
        self._fifo = os.open(person.workspace / "fifo", os.O_RDONLY | os.O_NONBLOCK)
        self._poll = select.poll()
        self._poll.register(self._fifo, select.POLLIN)
        self.process = person.popen("run", "--policy", str(policy), *options, "--", "agent.py")

    def done(self, count: int) -> None:
        """Wait until the agent has made ``count`` more files."""
        while count > 0:
            assert self._poll.poll(PATIENCE), "the agent does not work"
            count -= len(os.read(self._fifo, 65536))

    def over(self) -> None:
        """Wait until every process of the agent is gone."""
        while True:
            assert self._poll.poll(PATIENCE), "the agent is neither at work nor gone"
            if not os.read(self._fifo, 65536):
                return

    def ended(self) -> subprocess.CompletedProcess[str]:
        """Wait for the end of ``safeclaw run``."""
        return Person.finish(self.process)

    def made(self) -> set[str]:
        """Return the paths of the files that the agent has made."""
        return {str(path) for path in (self.person.workspace / "made").iterdir()}

    def kill_both(self, broker: int) -> None:
        """Kill the broker and the supervisor, which has no time to find another one between."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)
        signal.pidfd_send_signal(broker, signal.SIGKILL)
        self.process.kill()

    def close(self) -> None:
        os.close(self._fifo)
        if self.process.poll() is None:
            self.process.kill()
            self.process.communicate()


@contextlib.contextmanager
def at_work(person: Person, *options: str, assurance: str = "pipelined") -> Generator[Work]:
    work = Work(person, *options, assurance=assurance)
    try:
        work.done(20)
        yield work
    finally:
        work.close()


@contextlib.contextmanager
def broker_of(person: Person) -> Generator[int]:
    """Give a pidfd of the broker; end it, should a failed test leave it."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as probe:
        probe.connect(str(person.state / "safeclaw" / "broker.sock"))
        answer = probe.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pidfd = os.pidfd_open(struct.unpack("=iII", answer)[0])
    try:
        yield pidfd
    finally:
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(pidfd, signal.SIGKILL)
        os.close(pidfd)


def gone(pidfd: int) -> None:
    """Wait for the end of a process."""
    poll = select.poll()
    poll.register(pidfd, select.POLLIN)
    assert poll.poll(PATIENCE), "the process does not end"


def recorded(person: Person) -> set[str]:
    """Return the paths that the journal says were made."""
    allowed = person.records("--action", "file.write.create", "--decision", "allow")
    return {str(fields(record["target"])["path"]) for record in allowed}


def whole(person: Person) -> None:
    """Assert that the chain verifies, before and after the next session."""
    for _ in range(2):
        verified = person.safeclaw("audit", "verify")
        assert verified.returncode == 0, verified.stdout
        after = person.safeclaw("run", "--", "true")
        assert after.returncode == 0, after.stderr


def supervisor_killed(person: Person, *options: str) -> None:
    """Kill the supervisor of an agent at work, and assert that it takes the agent along."""
    with at_work(person, *options) as work, broker_of(person) as broker:
        work.process.kill()
        work.over()
        made = work.made()
        assert work.ended().returncode == -signal.SIGKILL
        gone(broker)
    assert made <= recorded(person)
    (end,) = person.records("--type", "session_end")
    assert end["reason"] == "the supervisor has gone"
    whole(person)
    assert work.made() == made
