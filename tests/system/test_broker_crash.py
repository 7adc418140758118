"""kill -9 of the broker at any system call on its journal, with sessions writing.

strace counts the calls of a kind that touch the journal's files, and delivers the signal at
the Nth, for every kind that the broker makes.  Whatever the broker had acknowledged by then
has to be in the chain, which has to verify; then the next broker starts, and how long that
takes is printed.
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
from collections.abc import Generator
from pathlib import Path

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.journal import RecordType, files, keys, read
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict
from tests.standalone import standalone

WRITERS = 6
#: How many decisions each has on the way.
AHEAD = 4
#: Every call that a broker makes on its journal's files, and how many of it lie in reach.
CALLS = {
    "write": 120,
    "fdatasync": 120,
    "newfstatat": 240,
    "openat": 4,  # these belong to a checkpoint, of which there is one or two a second
    "rename": 4,
    "close": 4,
}
#: After so many rounds a new chain is begun: each round verifies all of it.
ROUNDS_OF_A_CHAIN = 25
POLICY = b"""\
version: "1.0"
assurance: strict
rules:
  - {action: file.read, path: "**", effect: allow}
"""
PATIENCE = 60.0


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
def broker(state: Path) -> Generator[tuple[subprocess.Popen[bytes], float]]:
    """Start a broker; give it, and how many seconds it took until it answered."""
    heard = state.parent / "notify"
    (state.parent / "safeclaw" / "policies").mkdir(parents=True, exist_ok=True)
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


def kill_at(
    pid: int, directory: Path, call: str, number: int, log: Path
) -> subprocess.Popen[bytes]:
    """Have strace kill a process at its ``number``-th such call on the journal's files."""
    last = files.segments(directory)[-1][0]
    names = (files.CHECKPOINT, files.FRONTIER, keys.KEYRING, files.FAULT, "journald.cursor")
    paths = [directory, *(directory / files.segment_name(last + ahead) for ahead in range(2))]
    paths += [directory / f"{name}{new}" for name in names for new in ("", ".new")]
    strace = subprocess.Popen(
        [
            "strace", "-f", "-o", str(log), "-p", str(pid),
            *(word for path in paths for word in ("-P", str(path))),
            "-e", f"inject={call}:signal=KILL:when={number}+",
        ],
        stderr=subprocess.PIPE,
    )  # fmt: skip
    assert strace.stderr is not None
    while b" attached" not in (line := strace.stderr.readline()):
        assert line, "strace did not attach"
    return strace


def one_round(state: Path, call: str, number: int, chance: random.Random) -> tuple[str, float, int]:
    """Crash once; return where, the seconds of the start, and what was acknowledged."""
    directory = state / "journal"
    log = state.parent / "strace.log"
    with broker(state) as (process, seconds):
        writers = [Writer(state) for _ in range(WRITERS)]
        strace = kill_at(process.pid, directory, call, number, log)
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
    calls = re.findall(r"^\d+ +(\w+)\(", log.read_text(errors="replace"), re.M)
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
    return calls[-1], seconds, sum(writer.acknowledged for writer in writers)


def crash(place: Path, rounds: int, seed: int) -> None:
    """Crash as often as asked, and print what was found."""
    chance = random.Random(seed)
    killed: dict[str, int] = {}
    starts: list[float] = []
    acknowledged = 0
    for number in range(rounds):
        state = place / str(number // ROUNDS_OF_A_CHAIN) / "state"
        if not state.exists():
            state.mkdir(parents=True, mode=0o700)
            with broker(state) as (process, _):  # makes the chain
                process.terminate()
                assert process.wait(PATIENCE) == 0
        wanted = list(CALLS)[number % len(CALLS)]
        at = chance.randrange(1, CALLS[wanted] + 1)
        call, seconds, count = one_round(state, wanted, at, chance)
        assert call == wanted
        killed[call] = killed.get(call, 0) + 1
        starts.append(seconds)
        acknowledged += count
        with broker(state) as (process, seconds):
            process.terminate()
            assert process.wait(PATIENCE) == 0
        starts.append(seconds)
        public_key = state / "keys" / files.PUBLIC_KEY
        report = verify(state / "journal", public_key=keys.read_public_keys(public_key))
        assert report.status is Status.INTACT, (call, at, report.finding)
        assert standalone(state / "journal", public_key=public_key) == 0, (call, at)
        for kind in (RecordType.GAP, RecordType.FAULT):
            assert not list(read(state / "journal", type=kind)), (call, at)
        if number % ROUNDS_OF_A_CHAIN == ROUNDS_OF_A_CHAIN - 1:
            shutil.rmtree(state.parent)
    print(
        f"\n{rounds} crashes, {acknowledged} acknowledged records, none lost; killed at "
        + ", ".join(f"{call} {count}" for call, count in sorted(killed.items()))
        + f"; a start takes {statistics.median(starts):.2f} s, at most {max(starts):.2f} s"
    )
    assert acknowledged > rounds
    assert set(killed) == set(CALLS)


@pytest.fixture(name="place")
def _place(tmp_path: Path) -> Path:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    return tmp_path


def test_a_broker_killed_at_any_call_loses_nothing_acknowledged(place: Path) -> None:
    crash(place, 10, seed=1)


@pytest.mark.soak
def test_a_broker_killed_500_times_loses_nothing_acknowledged(place: Path) -> None:
    crash(place, 500, seed=0)
