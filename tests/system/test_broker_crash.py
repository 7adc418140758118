"""kill -9 of the broker at any system call on its journal, with sessions writing.

strace counts the calls of a kind that touch the journal's files, and delivers the signal at
the Nth, for every kind that the broker makes.  Whatever the broker had acknowledged by then
has to be in the chain, which has to verify; then the next broker starts, and how long that
takes is printed.

In half of the rounds the chain is *turning*: segments are small, the key is old, and the first
segments are from before the retention, so that the kill also falls on rotations, on the roll of
the key and on pruning.
"""

from __future__ import annotations

import contextlib
import os
import random
import re
import select
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Generator
from pathlib import Path

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.journal import RecordType, files, keys, read
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict
from tests.journals import DAY, Host, decision
from tests.standalone import standalone
from tests.system.conftest import Person
from tests.system.system_broker import KILLED, Pace, brokers, group_of

WRITERS = 6
#: How many decisions each has on the way.
AHEAD = 4
#: Every call that a broker makes on its journal's files, and how many of it lie in reach.
STEADY = {
    "write": 120,
    "fdatasync": 120,
    "fallocate": 120,
    "newfstatat": 240,
    "openat": 4,  # these belong to a checkpoint, of which there is one or two a second
    "rename": 4,
    "close": 4,
}
#: The same in a chain that turns: the first rotation rolls the key and prunes.
TURNING = {
    "write": 60,
    "fdatasync": 60,
    "fallocate": 60,
    "newfstatat": 120,
    "openat": 24,
    "rename": 6,
    "close": 24,
    "fsync": 12,  # of directories, and of the old key's zeros
    "pwrite64": 1,  # those zeros
    "unlink": 4,  # of segments
}
ROUNDS = [(False, call) for call in STEADY] + [(True, call) for call in TURNING]
SETTINGS = '{"journal": {"segment_kib": %d, "key_days": 1}}\n'
#: The new segments that a round may get to.
AHEAD_OF_LAST = 100
#: After so many rounds a new chain is begun: each round verifies all of it.
ROUNDS_OF_A_CHAIN = 25
POLICY = b"""\
version: "1.0"
assurance: strict
rules:
  - {action: file.read, path: "**", effect: allow}
"""
SESSION = b"""\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
"""
STEPS = """\
import os
said = os.open("fifo", os.O_WRONLY)
while True:
    open("made", "w").close()
    os.write(said, b".")
"""
PATIENCE = 300.0


class Writer:
    """A session that records decisions without an end, and what was acknowledged of it."""

    def __init__(self, state: Path) -> None:
        self._client = Client.at(state / "broker.sock")
        self._client.hello(
            protocol.Hello(protocol.VERSION, "crash", ("crash",), "/srv", "crash.yaml", POLICY)
        )
        self.session = self._client.lease().session
        self.socket = self._client.channel.sock
        self.sent = self.acknowledged = 0
        self._tail = protocol.decided_tail(
            Attempt("file.read", FileTarget("/srv/agent/file")),
            Verdict(Decision.ALLOW, "crash:1", "allowed by the rule on line 3"),
            exe="/usr/bin/python3",
            enforced_by="seccomp-notify",
        )

    def write(self) -> None:
        """Have ``AHEAD`` decisions on the way, unless the broker has gone."""
        with contextlib.suppress(OSError):
            while self.sent < self.acknowledged + AHEAD:
                packet = protocol.decided_packet(self._tail, self.sent + 1, 7, 1000)
                self.socket.send(packet)
                self.sent += 1

    def hear(self) -> bool:
        """Take what the broker says; False when it has gone."""
        try:
            data = self.socket.recv(1 << 16)
        except OSError:
            return False
        if data:
            message = protocol.decode_to_supervisor(data)
            if isinstance(message, protocol.Ack):
                self.acknowledged = max(self.acknowledged, message.number)
        return bool(data)

    def close(self) -> None:
        self._client.channel.close()


@contextlib.contextmanager
def broker(state: Path, *, small: bool) -> Generator[tuple[subprocess.Popen[bytes], float]]:
    """Start a broker; give it, and how many seconds it took until it answered."""
    heard = state.parent / "notify"
    (state.parent / "safeclaw" / "policies").mkdir(parents=True, exist_ok=True)
    (state.parent / "safeclaw" / "safeclawd.yaml").write_text(SETTINGS % (32 if small else 1024))
    with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)) as notify:
        heard.unlink(missing_ok=True)
        notify.bind(str(heard))
        notify.settimeout(PATIENCE)
        begin = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "safeclaw.daemon.cli.safeclawd", "--state", str(state)],
            env={
                **os.environ,
                "NOTIFY_SOCKET": str(heard),
                "XDG_CONFIG_HOME": str(state.parent),
            },
        )
        try:
            while b"READY=1" not in notify.recv(4096):
                pass
            yield process, time.monotonic() - begin
        finally:
            process.kill()
            process.wait()


def kill_at(pid: int, state: Path, call: str, number: int, log: Path) -> subprocess.Popen[bytes]:
    """Have strace kill a process at its ``number``-th such call on the journal's files."""
    directory, keyring = state / "journal", state / "keys"
    found = files.segments(directory)
    last = found[-1][0] + AHEAD_OF_LAST
    segments = [files.segment_name(one) for one in range(found[0][0], last)]
    names = (files.CHECKPOINT, files.FRONTIER, keys.KEYRING, files.FAULT, "journald.cursor")
    paths = [directory, keyring, *(directory / name for name in segments)]
    paths += [directory / f"{name}{new}" for name in names for new in ("", ".new")]
    signing = (files.PRIVATE_KEY, files.PUBLIC_KEY, keys.NEXT_KEY)
    paths += [keyring / f"{name}{new}" for name in signing for new in ("", ".new")]
    strace = subprocess.Popen(
        [
            "strace", "-f", "-y", "-o", str(log), "-p", str(pid),
            *(word for path in paths for word in ("-P", str(path))),
            "-e", f"inject={call}:signal=KILL:when={number}+",
        ],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert strace.stderr is not None
    while b" attached" not in (line := strace.stderr.readline()):
        assert line, "strace did not attach"
    return strace


def struck(log: Path, call: str) -> str:
    """Return, of a log of strace, what kind of file the last such call was on."""
    # Another thread may have begun a call of its own while this one was killed.
    text = re.findall(rf"^\d+ +({call}\(.*)", log.read_text(errors="replace"), re.M)[-1]
    path = (re.findall(r'"(/[^"]+)"', text) or re.findall(r"<(/[^>]+)>", text))[0]
    return re.sub(r"segment-\d+\.jsonl", "a segment", Path(path).name).removesuffix(".new")


def one_round(
    state: Path, call: str, number: int, chance: random.Random, *, small: bool
) -> tuple[str, float, int]:
    """Crash once; return where, the seconds of the start, and what was acknowledged."""
    directory = state / "journal"
    log = state.parent / "strace.log"
    with broker(state, small=small) as (process, seconds):
        writers = [Writer(state) for _ in range(WRITERS)]
        strace = kill_at(process.pid, state, call, number, log)
        sockets = {writer.socket: writer for writer in writers}
        for writer in writers:
            writer.write()
        while sockets:
            ready = select.select(list(sockets), [], [], PATIENCE)[0]
            assert ready, "the broker neither works nor dies"
            for one in chance.sample(ready, len(ready)):
                if sockets[one].hear():
                    sockets[one].write()
                else:
                    del sockets[one]
        assert process.wait(PATIENCE) == -signal.SIGKILL
        strace.communicate(timeout=PATIENCE)
    # Before the next start, which may write: what was acknowledged is on disk.
    there: dict[str, list[int]] = {writer.session: [] for writer in writers}
    for path in (path for _, path in files.segments(directory)):
        for line in path.read_bytes().splitlines():
            found = re.search(rb'"attempt":(\d+),.*"session":"([0-9a-f]+)"', line)
            if found and found[2].decode() in there and line.endswith(b"}"):
                there[found[2].decode()].append(int(found[1]))
    for writer in writers:
        assert there[writer.session][: writer.acknowledged] == list(
            range(1, writer.acknowledged + 1)
        ), (call, number)
        writer.close()
    return struck(log, call), seconds, sum(writer.acknowledged for writer in writers)


def aged(place: Path, patch: pytest.MonkeyPatch) -> Path:
    """Make a state whose key and first segments are old; return it."""
    state = place / "aged" / "state"
    state.mkdir(parents=True, mode=0o700)
    with patch.context() as clocks:
        host = Host(clocks)
        host.wall_ns = time.time_ns() - 110 * DAY
        for day in range(5):
            with host.open(state / "journal") as journal:
                journal.append(decision(day))
            host.passes(DAY)
        host.wall_ns = time.time_ns()
        host.reboot()
        with host.open(state / "journal") as journal:
            journal.upkeep.retention_days = 200  # not yet
            journal.append(decision(5))  # begins a segment: there is no rotation before it is full
    long_ago = time.time() - 30 * 86_400
    os.utime(state / "keys" / files.PRIVATE_KEY, (long_ago, long_ago))
    return state


def crash(place: Path, rounds: list[tuple[bool, str]], seed: int) -> None:
    """Crash once for each round, and print what was found."""
    chance = random.Random(seed)
    killed: Counter[tuple[bool, str, str]] = Counter()
    starts: list[float] = []
    acknowledged = rolled = pruned = rotated = 0
    with pytest.MonkeyPatch.context() as patch:
        old = aged(place, patch)
    for number, (turning, call) in enumerate(rounds):
        if turning:
            state = place / "turning" / "state"
            shutil.copytree(old, state)
        else:
            state = place / str(number // ROUNDS_OF_A_CHAIN) / "state"
        if not state.exists():
            state.mkdir(parents=True, mode=0o700)
            with broker(state, small=turning) as (process, _):  # makes the chain
                process.terminate()
                assert process.wait(PATIENCE) == 0
        at = chance.randrange(1, (TURNING if turning else STEADY)[call] + 1)
        before = len(files.segments(state / "journal"))
        name, seconds, count = one_round(state, call, at, chance, small=turning)
        killed[turning, call, name] += 1
        starts.append(seconds)
        acknowledged += count
        with broker(state, small=turning) as (process, seconds):
            process.terminate()
            assert process.wait(PATIENCE) == 0
        starts.append(seconds)
        public_key = state / "keys" / files.PUBLIC_KEY
        report = verify(state / "journal", public_key=keys.read_public_keys(public_key))
        assert report.status is Status.INTACT, (call, at, report.finding)
        assert standalone(state / "journal", public_key=public_key) == 0, (call, at)
        assert not (state / "keys" / keys.NEXT_KEY).exists(), (call, at)
        for kind in (RecordType.GAP, RecordType.FAULT):
            assert not list(read(state / "journal", Filter(type=kind))), (call, at)
        if turning:
            rolled += report.epochs > 1
            pruned += report.pruned > 0
            rotated += len(files.segments(state / "journal")) > before - 4 * (report.pruned > 0)
            shutil.rmtree(state.parent)
    print(f"\n{len(rounds)} crashes, {acknowledged} acknowledged records, none lost")
    for (turning, call, name), count in sorted(killed.items()):
        print(f"  {count:4} at {call} of {name}" + (", turning" if turning else ""))
    print(
        f"by the crash {rotated} had rotated, {rolled} rolled the key, {pruned} pruned; "
        f"a start takes {statistics.median(starts):.2f} s, at most {max(starts):.2f} s"
    )
    assert acknowledged > len(rounds)
    assert min(rotated, rolled, pruned) > 0


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return tmp_path


def test_a_broker_killed_at_any_call_loses_nothing_acknowledged(place: Path) -> None:
    crash(place, ROUNDS, seed=1)


@pytest.mark.parametrize(
    ("call", "number"), [("openat", 6), ("pwrite64", 1), ("unlink", 2)],
    ids=["rotates", "rolls its key", "prunes"],
)  # fmt: skip
def test_an_agent_survives_a_broker_killed_as_it(
    place: Path, person: Person, ordinary_user: str, call: str, number: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        old = aged(place, patch)
    settings = {"journal": {"segment_kib": 32, "key_days": 1}, "grace": 300}
    with (
        brokers(group_of(ordinary_user), SESSION.decode()) as make,
        contextlib.closing(Pace(person.workspace / "fifo", person.name)) as pace,
    ):
        broker = make(**settings)
        broker.stop()
        for part in ("journal", "keys"):
            shutil.rmtree(broker.state / part)
            shutil.copytree(old / part, broker.state / part)
        broker.start()
        assert broker.process is not None
        person.write("steps.py", STEPS)
        words = ("--agent", "demo", "--", "/usr/bin/python3", "steps.py")
        with broker.run(person, *words, key=broker.add("demo")) as running:
            strace = kill_at(broker.process.pid, broker.state, call, number, place / "log")
            assert broker.process.wait(PATIENCE) == -signal.SIGKILL
            strace.communicate(timeout=PATIENCE)
            broker.stop()
            pace.drain()
            broker.start()
            pace.steps(2_000)
            broker.ask("kill", "demo")
            pace.gone()
            assert running.wait(PATIENCE) in KILLED
            _, said = running.communicate()
        assert "nothing is allowed any more" not in said
        (start,) = broker.records("--type", "session_start")
        records = broker.records("--session", str(start["session"]))
        numbers = [one["attempt"] for one in records if "attempt" in one]
        assert numbers == list(range(1, len(numbers) + 1))
        assert not broker.records("--type", "gap")
        verified = broker.verify()
        assert verified.returncode == 0, verified.stdout


@pytest.mark.soak
def test_a_broker_killed_500_times_loses_nothing_acknowledged(place: Path) -> None:
    crash(place, [ROUNDS[number % len(ROUNDS)] for number in range(500)], seed=0)
