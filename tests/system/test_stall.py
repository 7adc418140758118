"""One slow attempt never holds up the others, and nothing that an agent hoards stops them.

Nothing here is timed: who waits is held by the test until the others have said that they are
done, and only then let go.
"""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Person, fields

SOURCE = Path(__file__).with_name("crowd.c")
POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "denied/**", effect: deny}
  - {action: file.read, path: "asked", effect: ask, reason: "somebody looks at this first"}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "*", effect: allow}
"""
OTHERS, OPENS = 199, 20
#: Has as many signals wait as the person may have waiting (RLIMIT_SIGPENDING).
HOARDS_SIGNALS = """\
import ctypes, os, signal
libc = ctypes.CDLL(None)
signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGRTMIN + 5})
while not libc.sigqueue(os.getpid(), signal.SIGRTMIN + 5, None):
    pass
"""
#: Waits in vain more often than the supervisor lets anybody wait at once.
GIVES_UP = """\
import os, signal, subprocess

def wait():
    signal.setitimer(signal.ITIMER_REAL, 0.05)
    while True:
        try:
            os.open("fifo", os.O_RDONLY)
        except BlockingIOError:
            pass  # as many wait as may, until the supervisor has seen who has given up

for _ in range(30):
    child = os.fork()
    if child == 0:
        wait()  # is killed by the timer
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGALRM

class Rings(Exception):
    pass

def ring(*_):
    raise Rings

signal.signal(signal.SIGALRM, ring)
for _ in range(10):
    try:
        wait()
    except Rings:
        pass
# an exec has to wait as they do, and never could if somebody were left behind in each place
for _ in range(20000):
    try:
        subprocess.run(["true"], check=True)
    except BlockingIOError:
        continue
    print("done")
    break
"""


@pytest.fixture(name="crowd", scope="module")
def _crowd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    program = tmp_path_factory.mktemp("crowd") / "crowd"
    subprocess.run(["gcc", "-O1", "-Wall", "-Wextra", "-Werror", "-o", program, SOURCE], check=True)
    return program


@pytest.fixture(name="place")
def _place(person: Person, crowd: Path) -> Person:
    """A person with the program, a file to read, and a policy."""
    (person.workspace / "crowd").write_bytes(crowd.read_bytes())
    (person.workspace / "crowd").chmod(0o755)
    person.write("data", "data")
    person.write("denied/key", "secret")
    (person.base / "policy.yaml").write_text(POLICY)
    person.own()
    return person


def run(
    place: Person,
    *words: str,
    limit: int | None = None,
    program: tuple[str, ...] = ("./crowd",),
) -> subprocess.Popen[str]:
    """Start the crowd; ``limit`` is how many descriptors its supervisor may have."""
    policy = str(place.base / "policy.yaml")
    command = place.command("run", "--policy", policy, "--", *program, *words)
    if limit is not None:
        command = ["sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh", *command]
    return place.start(command, place.workspace)


def line(running: subprocess.Popen[str]) -> str:
    """Return the next line that the crowd says."""
    assert running.stdout is not None
    return running.stdout.readline().rstrip("\n")


def let_go(place: Person) -> None:
    """Have the others begin."""
    with (place.workspace / "go").open("w") as go:
        go.write("x")


def approval(running: subprocess.Popen[str]) -> str:
    """Return the question that the person is told of."""
    assert running.stderr is not None
    said = running.stderr.readline()
    assert said.startswith("safeclaw: waiting for approval "), said
    return said.split(":")[1].split()[-1]


def waiting(place: Person) -> list[str]:
    """Return the questions that wait for an answer."""
    listed = place.safeclaw("approvals", "list", "--json")
    assert listed.returncode == 0, listed.stderr
    return [str(one["approval"]) for one in json.loads(listed.stdout)]


@pytest.fixture(name="leased")
def _leased(place: Person) -> Iterator[int]:
    """A file that nobody can open for writing or truncate until it is let go (fcntl(2))."""
    path = place.write("leased", "something")
    before = signal.signal(signal.SIGIO, signal.SIG_IGN)  # it says that somebody waits
    descriptor = os.open(path, os.O_RDONLY)
    fcntl.fcntl(descriptor, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    yield descriptor
    os.close(descriptor)
    signal.signal(signal.SIGIO, before)


def test_a_fifo_that_nobody_writes_holds_up_nobody_else(place: Person) -> None:
    os.mkfifo(place.workspace / "fifo")
    place.own()
    with run(place, str(OTHERS), str(OPENS), "open", "fifo") as running:
        assert line(running) == f"others: {OTHERS * OPENS} opened, 0 failed"
        os.close(os.open(place.workspace / "fifo", os.O_WRONLY))
        assert line(running) == "fifo: done"
        assert running.wait() == 0


def test_who_waits_for_an_approval_or_on_a_fifo_holds_up_nobody_else(place: Person) -> None:
    os.mkfifo(place.workspace / "fifo")
    os.mkfifo(place.workspace / "go")
    place.write("asked", "for a person to allow")
    with run(place, str(OTHERS - 1), str(OPENS), "open", "fifo", "open", "asked") as running:
        question = approval(running)
        assert waiting(place) == [question]
        let_go(place)
        assert line(running) == f"others: {(OTHERS - 1) * OPENS} opened, 0 failed"
        # both still wait
        assert waiting(place) == [question]
        approved = place.safeclaw("approvals", "approve", question)
        assert approved.returncode == 0, approved.stderr
        assert line(running) == "asked: done"
        os.close(os.open(place.workspace / "fifo", os.O_WRONLY))
        assert line(running) == "fifo: done"
        assert running.wait() == 0
    assert place.safeclaw("audit", "verify").returncode == 0


def test_a_question_on_the_terminal_holds_up_nobody_else(place: Person) -> None:
    ours, terminal = os.openpty()
    name = os.ttyname(terminal)
    os.chown(name, place.uid, -1)
    os.mkfifo(place.workspace / "go")
    place.write("asked", "for a person to allow")
    words = ["--policy", str(place.base / "policy.yaml"), "--"]
    words += ["./crowd", str(OTHERS), str(OPENS), "open", "asked"]
    command = ["setsid", "--ctty", "--wait", *place.command("run", *words)]
    command = ["sh", "-c", f'exec "$@" <{name}', "sh", *command]
    with place.start(command, place.workspace) as running:
        asked = b""
        while not asked.endswith(b"[n]o: "):
            asked += os.read(ours, 4096)
        assert f"allow file.read {place.workspace}/asked? ".encode() in asked
        let_go(place)
        assert line(running) == f"others: {OTHERS * OPENS} opened, 0 failed"
        os.write(ours, b"y\n")
        assert line(running) == "asked: done"
        assert running.wait() == 0
    os.close(ours)
    os.close(terminal)


def test_what_the_loop_cannot_know_to_be_slow_holds_up_nobody_else(
    place: Person, leased: int
) -> None:
    waits = ["truncate", "leased"] * 3
    with run(place, str(OTHERS), str(OPENS), *waits) as running:
        assert line(running) == f"others: {OTHERS * OPENS} opened, 0 failed"
        # asked for, and still held: all three wait (fcntl(2), F_GETLEASE)
        assert fcntl.fcntl(leased, fcntl.F_GETLEASE) == fcntl.F_UNLCK
        assert (place.workspace / "leased").read_text() == "something"
        fcntl.fcntl(leased, fcntl.F_SETLEASE, fcntl.F_UNLCK)
        assert [line(running) for _ in range(3)] == ["leased: done"] * 3
        assert running.wait() == 0
    assert (place.workspace / "leased").read_text() == ""


def test_with_few_descriptors_left_what_waits_is_bounded_and_the_others_go_on(
    place: Person,
) -> None:
    os.mkfifo(place.workspace / "fifo")
    place.own()
    waits = ["open", "fifo"] * 40
    with run(place, str(OTHERS), str(OPENS), *waits, limit=64) as running:
        refused = 0
        while (said := line(running)).startswith("fifo: "):
            # more than may wait: refused, and not carried out
            assert said == "fifo: Resource temporarily unavailable"
            refused += 1
        assert said == f"others: {OTHERS * OPENS} opened, 0 failed"
        assert refused > 0
        writer = os.open(place.workspace / "fifo", os.O_WRONLY)
        rest = [line(running) for _ in range(40 - refused)]
        os.close(writer)
        assert set(rest) == {"fifo: done"}
        assert running.wait() == 0
    assert place.safeclaw("audit", "verify").returncode == 0


def test_who_gives_up_waiting_leaves_nobody_behind_that_waits(place: Person) -> None:
    os.mkfifo(place.workspace / "fifo")
    place.write("agent.py", GIVES_UP)
    with run(place, limit=64, program=("/usr/bin/python3", "agent.py")) as running:
        assert line(running) == "done"
        assert running.wait() == 0


def test_who_gives_up_waiting_does_so_when_no_signal_can_be_queued(place: Person) -> None:
    os.mkfifo(place.workspace / "fifo")
    place.write("agent.py", HOARDS_SIGNALS + GIVES_UP)
    with run(place, limit=64, program=("/usr/bin/python3", "agent.py")) as running:
        assert line(running) == "done"
        assert running.wait() == 0


def test_a_storm_of_forks_is_served_and_recorded_one_by_one(place: Person) -> None:
    with run(place, "500", "10") as running:
        assert line(running) == "others: 5000 opened, 0 failed"
        assert running.wait() == 0
    data = {"path": str(place.workspace / "data")}
    reads = place.records("--action", "file.read", "--decision", "allow")
    assert sum(fields(record["target"]) == data for record in reads) == 5000


def test_a_stderr_that_nobody_reads_holds_up_nobody(place: Person) -> None:
    names = "for n in range(2000):\n  try: open(f'denied/{n}', 'w')\n  except OSError: pass\n"
    place.write("agent.py", names + "print('done')\n")
    os.mkfifo(place.base / "stderr")
    place.own()
    reader = os.open(place.base / "stderr", os.O_RDONLY | os.O_NONBLOCK)
    words = ["--policy", str(place.base / "policy.yaml"), "--", "/usr/bin/python3", "agent.py"]
    with place.popen("run", *words, redirect=f"2>{place.base}/stderr") as running:
        assert line(running) == "done"
        assert running.wait() == 0
    os.close(reader)
    denied = place.records("--action", "file.write.create", "--decision", "deny")
    assert len(denied) == 2000
