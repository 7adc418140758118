"""kill -9 of the writer at every system call by which it changes the disk.

strace delivers the signal at the entry of the Nth call of a kind; whatever the
writer had acknowledged by then must be in the chain, and the chain must verify.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Journal, files, keys, read
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from tests.standalone import standalone

ROUNDS = int(os.environ.get("SAFECLAW_CRASHES", "8"))
CALLS = ("write", "pwrite64", "fdatasync", "fsync", "rename", "unlink", "openat", "ftruncate")

WRITER = """
import os, sys
from pathlib import Path
from safeclaw.daemon.journal import Journal
from tests.journals import decision
# What strace is to count begins here: a call that only the writer's own work makes.
with Journal.open(Path(sys.argv[1])) as journal:
    journal.upkeep.segment_bytes = 4000
    for number in range(400):
        journal.append(decision(number))
        if number % 11 == 10:
            journal.roll_key()
        if number % 17 == 16:
            journal.prune(0, override=True)
        os.write(int(sys.argv[2]), journal.commit().to_bytes(8, "big"))
"""


@pytest.mark.timeout(3600)  # as many rounds as were asked for
def test_a_writer_killed_at_any_call_loses_nothing_acknowledged(tmp_path: Path) -> None:
    if shutil.which("strace") is None:
        pytest.skip("strace is not installed")
    chance = random.Random(int(os.environ.get("SAFECLAW_SEED", "0")))
    directory = tmp_path / "journal"
    (tmp_path / "writer.py").write_text(WRITER)
    killed: set[str] = set()
    acknowledged = -1
    for number in range(ROUNDS):
        call = CALLS[number % len(CALLS)]
        when = chance.randrange(1, 60)
        read_end, write_end = os.pipe()
        command = [
            "strace", "-qq", "-o", "/dev/null", "-P", str(directory), "-P", str(tmp_path / "keys"),
            *(word for path in watched(tmp_path) for word in ("-P", str(path))),
            "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={when}+",
            sys.executable, str(tmp_path / "writer.py"), str(directory), str(write_end),
        ]  # fmt: skip
        environment = {**os.environ, "PYTHONPATH": os.getcwd(), "PYTHONDONTWRITEBYTECODE": "1"}
        with subprocess.Popen(command, pass_fds=(write_end,), env=environment) as process:
            os.close(write_end)
            with os.fdopen(read_end, "rb") as stream:
                while word := stream.read(8):
                    acknowledged = int.from_bytes(word, "big")
            process.wait()
        if process.returncode == -signal.SIGKILL or process.returncode == 128 + signal.SIGKILL:
            killed.add(call)
        with Journal.open(directory) as journal:
            assert journal.head[0] >= acknowledged, (call, when)
        last = next(iter(read(directory, last=1)))
        assert last.seq >= acknowledged
        public_key = tmp_path / "keys" / files.PUBLIC_KEY
        report = verify(directory, public_key=keys.read_public_keys(public_key))
        assert report.status is Status.INTACT, (call, when, report.finding)
        assert standalone(directory, public_key=public_key) == 0, (call, when)
        assert not (tmp_path / "keys" / keys.NEXT_KEY).exists()
    assert len(killed) >= min(4, ROUNDS // 2), killed


def watched(state: Path) -> list[Path]:
    """Return the files that the next rounds may change, by name: strace looks at paths."""
    journal = state / "journal"
    last = files.segments(journal)[-1][0] if journal.exists() and files.segments(journal) else 0
    names = (files.CHECKPOINT, files.FRONTIER, keys.KEYRING, files.FAULT)
    return [
        *(journal / files.segment_name(last + ahead) for ahead in range(25)),
        *(journal / name for name in names),
        *(journal / f"{name}.new" for name in names),
        *(state / "keys" / name for name in
          (files.PRIVATE_KEY, files.PUBLIC_KEY, keys.NEXT_KEY,
           f"{files.PUBLIC_KEY}.new", f"{keys.NEXT_KEY}.new", f"{files.PRIVATE_KEY}.new")),
    ]  # fmt: skip
