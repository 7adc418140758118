"""A disk that fails under a running broker, and a journal that somebody lays hands on.

The disk is an ext4 file system on a loop device; its faults are the kernel's own: a
shutdown (every write is EIO), an error that remounts it read-only.  Kernels need not have
quotas: that one strace puts into the broker's write.  In each case nothing is allowed from
then on, and the person is told why.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import struct
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, read
from safeclaw.daemon.journal.journal import Journal
from safeclaw.errors import JournalFaultError
from tests.journals import decision
from tests.system.conftest import Person
from tests.system.work import at_work, broker_of, gone, recorded, whole

_SHUTDOWN = 0x8004587D  # EXT4_IOC_SHUTDOWN, fs/ext4/ext4.h: _IOR('X', 125, __u32)
_NO_LOG_FLUSH = struct.pack("I", 2)


class LoopDisk:
    """An ext4 file system of its own over a person's state directory, for that person only."""

    def __init__(self, person: Person) -> None:
        self._image = person.base / "disk.img"
        self._at = person.state
        with self._image.open("wb") as image:
            image.truncate(32 << 20)
        subprocess.run(["mkfs.ext4", "-q", str(self._image)], check=True)
        script = f"{self._mount} && chown {person.name} {self._at} && echo ready && cat"
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n", "no loop device could be mounted"
        self._enter = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        person.within = ("nsenter", self._enter, f"--wd={person.workspace}")
        #: The same directory, seen from outside.
        self.path = Path(f"/proc/{self._holder.pid}/root{self._at}")

    @property
    def _mount(self) -> str:
        return f"mount -t ext4 -o loop,errors=remount-ro {self._image} {self._at}"

    def inside(self, command: str) -> str:
        """Run a shell command where the disk is mounted; return what it printed."""
        done = subprocess.run(
            ["nsenter", self._enter, "sh", "-c", command],
            check=True, capture_output=True, text=True,
        )  # fmt: skip
        return done.stdout.strip()

    def shut_down(self) -> None:
        """Have every write fail with EIO from now on."""
        fd = os.open(self.path, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _SHUTDOWN, _NO_LOG_FLUSH)
        finally:
            os.close(fd)

    def turn_read_only(self) -> None:
        """Have the kernel find an error, after which the disk is read-only."""
        device = Path(self.inside(f"findmnt -n -o SOURCE {self._at}")).name
        Path(f"/sys/fs/ext4/{device}/trigger_fs_error").write_text("1")

    def mend(self) -> None:
        """Check the file system, and mount it again."""
        # A broker may still be letting go of its files.
        self.inside(f"umount -l {self._at}")
        # Of a copy: mount(8) would take up a loop device that still has the old image, and the
        # kernel the file system on it, failed as it is.
        copy = self._image.with_suffix(f"{self._image.suffix}.mended")
        shutil.copyfile(self._image, copy)
        self._image = copy
        subprocess.run(["e2fsck", "-fp", str(self._image)], check=False, capture_output=True)
        self.inside(self._mount)

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture(name="disk")
def _disk(person: Person) -> Iterator[LoopDisk]:
    if os.geteuid() != 0:
        pytest.skip("not root: cannot mount a disk")
    disk = LoopDisk(person)
    yield disk
    person.within = ()
    disk.close()


FAULTS: dict[str, tuple[Callable[[LoopDisk], None], str]] = {
    "EIO": (LoopDisk.shut_down, "Input/output error"),
    "read-only": (LoopDisk.turn_read_only, "Read-only file system"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_disk_that_fails_stops_the_agent_and_loses_no_record(
    person: Person, disk: LoopDisk, name: str
) -> None:
    fail, said = FAULTS[name]
    with at_work(person, assurance="strict") as work:
        fail(disk)
        work.over()
        ended = work.ended()
    made = work.made()
    assert ended.returncode == 137, ended.stderr
    assert "the journal cannot be written: " in ended.stderr
    assert said in ended.stderr
    assert "nothing is allowed any more, the agent is stopped" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert len(made) >= 20
    refused = person.safeclaw("run", "--", "sh", "-c", "echo ran > ran")
    assert refused.returncode == 125, refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (person.workspace / "ran").exists()
    disk.mend()
    assert person.safeclaw("run", "--", "true").returncode == 0
    assert made <= recorded(person)
    whole(person)
    assert work.made() == made


# --- a sync that says yes, and did not


def acknowledged(disk: LoopDisk, fail: Callable[[], object], *, after: int = 0) -> int:
    """Append and commit until the disk, which ``fail`` breaks meanwhile, is found out.

    Return the highest number that a commit gave.
    """
    directory = disk.path / "journal"
    last = -1
    with contextlib.suppress(JournalFaultError), Journal.open(directory) as journal:
        last = journal.durable
        with ThreadPoolExecutor(1) as hand:
            failing: Future[object] | None = None
            while True:
                for number in range(5):
                    journal.append(decision(number))
                if last >= after and failing is None:
                    failing = hand.submit(fail)
                last = journal.commit()
    return last


def on_disk(disk: LoopDisk) -> int:
    """Return the number of the last record that a mended disk has."""
    disk.mend()
    return max(record.seq for record in read(disk.path / "journal"))


@pytest.fixture(name="unlooked")
def _unlooked(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Leave out the look at the file system after a sync, where the test asks for that."""
    if request.param:

        def says_yes(_fd: int, _offset: int, _length: int) -> None: ...

        monkeypatch.setattr(os, "posix_fallocate", says_yes)
    return bool(request.param)


@pytest.mark.parametrize("unlooked", [True, False], ids=["no look after", ""], indirect=True)
def test_a_sync_that_answers_yes_for_what_was_dropped_acknowledges_nothing(
    disk: LoopDisk, unlooked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The moment that the campaign below looks for, made: a disk that fails within the sync."""
    sync = os.fdatasync
    calls = 0

    def too_late(fd: int) -> None:
        nonlocal calls
        calls += 1
        if calls < 20:
            sync(fd)
        elif calls == 20:
            disk.shut_down()

    monkeypatch.setattr(os, "fdatasync", too_late)
    last = acknowledged(disk, lambda: None)
    monkeypatch.undo()
    assert calls == 20
    assert (on_disk(disk) < last) is unlooked


@pytest.mark.soak
@pytest.mark.parametrize("unlooked", [True, False], ids=["no look after", ""], indirect=True)
@pytest.mark.parametrize("name", FAULTS)
def test_a_disk_that_fails_within_a_sync_loses_nothing_acknowledged(
    person: Person, unlooked: bool, name: str
) -> None:
    """The kernel itself: ext4 answers 0 when the commit it should wait for was just dropped."""
    fail, _ = FAULTS[name]
    rounds, lost = 60, 0
    for number in range(rounds):
        shutil.rmtree(person.state)
        person.state.mkdir()
        disk = LoopDisk(person)
        try:
            last = acknowledged(disk, partial(fail, disk), after=40 + 7 * number % 100)
            lost += on_disk(disk) < last
        finally:
            person.within = ()
            disk.close()
    print(f"\n{name}, {'no ' * unlooked}look after: {lost} of {rounds} lost what was acknowledged")
    assert (lost > 0) is unlooked


def test_a_quota_that_is_used_up_stops_the_agent(person: Person) -> None:
    with at_work(person, assurance="strict") as work, broker_of(person) as broker:
        (pid,) = re.findall(r"^Pid:\t(\d+)$", Path(f"/proc/self/fdinfo/{broker}").read_text(), re.M)
        command = ["strace", "-qq", "-f", "-o", "/dev/null", "-p", pid, "-P", str(live(person)),
                   "-e", "trace=write", "-e", "inject=write:error=EDQUOT"]  # fmt: skip
        with subprocess.Popen(command) as strace:
            work.over()
            ended = work.ended()
            gone(broker)
            strace.wait()
    made = work.made()
    assert ended.returncode == 137, ended.stderr
    assert "the journal cannot be written: " in ended.stderr
    assert "Disk quota exceeded" in ended.stderr
    assert person.safeclaw("run", "--", "true").returncode == 0
    assert made <= recorded(person)
    (fault,) = person.records("--type", "fault")
    assert "Disk quota exceeded" in str(fault["reason"])
    whole(person)


def live(person: Person) -> Path:
    """Return the segment that is being written."""
    return files.segments(person.state / "safeclaw" / "journal")[-1][1]


def unlinked(path: Path) -> None:
    shutil.copy2(path, path.parent / "kept")
    path.unlink()


def renamed(path: Path) -> None:
    path.rename(path.parent / "kept")


def exchanged(path: Path) -> None:
    shutil.copy2(path, path.parent / "copy")
    path.rename(path.parent / "kept")
    (path.parent / "copy").rename(path)


def symlinked(path: Path) -> None:
    path.rename(path.parent / "kept")
    path.symlink_to(path.parent / "kept")


def linked(path: Path) -> None:
    path.rename(path.parent / "kept")
    os.link(path.parent / "kept", path)


def appended(path: Path) -> None:
    shutil.copy2(path, path.parent / "kept")
    with path.open("ab") as stream:
        stream.write(b"{}\n")


@pytest.mark.parametrize("hand", [unlinked, renamed, exchanged, symlinked, linked, appended])
def test_a_hand_on_the_live_file_stops_the_agent(
    person: Person, hand: Callable[[Path], None]
) -> None:
    with at_work(person, assurance="strict") as work:
        path = live(person)
        hand(path)
        work.over()
        ended = work.ended()
    made = work.made()
    assert ended.returncode == 137, ended.stderr
    assert "the journal cannot be written: " in ended.stderr
    assert "nothing is allowed any more, the agent is stopped" in ended.stderr
    assert "Traceback" not in ended.stderr
    if hand in (unlinked, renamed, symlinked):
        # There is no chain to go on with.
        refused = person.safeclaw("run", "--", "sh", "-c", "echo ran > ran")
        assert refused.returncode == 125, refused.stderr
        assert not (person.workspace / "ran").exists()
    # A copy that was taken before is an older chain: only an anchor elsewhere tells.
    if hand not in (unlinked, exchanged):
        # Put right, everything that was acknowledged is there.
        if hand is not appended:
            path.unlink(missing_ok=True)
            (path.parent / "kept").rename(path)
        person.own()
        assert person.safeclaw("run", "--", "true").returncode == 0
        assert made <= recorded(person)
        whole(person)
    assert work.made() == made


def test_a_second_writer_is_refused_and_the_first_goes_on(person: Person) -> None:
    with at_work(person) as work:
        refused = person.safeclaw("audit", "keys", "roll")
        assert refused.returncode != 0
        assert "a broker is writing this chain" in refused.stderr
        assert "hint: " in refused.stderr
        work.done(20)
