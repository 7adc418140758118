"""What a writer leaves on disk when it is killed, refused, filled up or raced, and goes on from."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, Journal, RecordType, files, read
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import RecordError
from safeclaw.daemon.journal.recovery import find_head, set_aside
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.errors import JournalError, JournalFaultError
from tests.journals import POLICY, decision, segment, write_chain


def test_a_cut_tail_refuses_the_next_writer(tmp_path: Path) -> None:
    path = segment(write_chain(tmp_path, 4))
    content = path.read_bytes()
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:-2]))
    with pytest.raises(JournalError):
        Journal.open(path.parent)


def test_a_torn_tail_is_set_aside_and_recorded(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 2)
    path = segment(directory)
    before = path.read_bytes()
    line = before.splitlines()[1]
    for length in (1, len(line) // 2, len(line)):
        torn = line[:length]
        with path.open("ab") as stream:
            stream.write(torn)
        report = verify(directory)
        assert report.status is Status.INCOMPLETE
        assert report.finding is not None
        assert "torn tail" in report.finding.what
        with Journal.open(directory):
            pass
        assert verify(directory).status is Status.INTACT
        recovery = list(read(directory, Filter(type="recovery")))[-1].detail
        assert recovery is not None
        assert (directory / str(recovery["file"])).read_bytes() == torn
        assert path.read_bytes().startswith(before)


def test_a_torn_tail_is_recorded_by_the_start_after_one_that_did_not_end(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 2)
    with segment(directory).open("ab") as stream:
        stream.write(b'{"half')
    # A start comes so far, and no further.
    set_aside(directory, find_head(directory, files.segments(directory)))
    for _ in range(2):
        with Journal.open(directory):
            pass
    (recovery,) = read(directory, Filter(type="recovery"))
    assert recovery.detail is not None
    assert (directory / str(recovery.detail["file"])).read_bytes() == b'{"half'
    assert recovery.detail["reason"] == "set aside by a start that did not end"
    assert verify(directory).status is Status.INTACT


def test_nothing_that_was_committed_is_lost_when_the_writer_is_killed(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            journal = Journal.open(tmp_path / "journal")
            for number in range(1_000_000):
                journal.append(decision(number))
                if number % 7 == 0:
                    os.write(write_end, journal.commit().to_bytes(8, "big"))
        finally:
            os._exit(1)
    os.close(write_end)
    acknowledged = 0
    with os.fdopen(read_end, "rb") as stream:
        for _ in range(50):
            acknowledged = int.from_bytes(stream.read(8), "big")
        os.kill(child, 9)
        os.waitpid(child, 0)
        while rest := stream.read(8):
            acknowledged = int.from_bytes(rest, "big")
    with Journal.open(tmp_path / "journal"):
        pass
    report = verify(tmp_path / "journal")
    assert report.status is Status.INTACT, report.finding
    assert report.records > acknowledged


def test_a_second_writer_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal"), pytest.raises(JournalError, match="another process"):
        Journal.open(tmp_path / "journal")
    with Journal.open(tmp_path / "journal"):
        pass


def test_a_writer_goes_on_where_the_last_one_stopped(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 2)
    for cached in (True, False):
        if not cached:
            (directory / files.FRONTIER).unlink()
        with Journal.open(directory) as journal:
            journal.append(decision(9))
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    assert report.records == 4 + 2 * 2


def test_a_crash_in_the_middle_of_a_rotation_is_recovered(tmp_path: Path) -> None:
    for number, torn in enumerate((b"", b'{"half')):
        directory = write_chain(tmp_path / str(number), 2)
        segment(directory, 2).write_bytes(torn)
        with Journal.open(directory) as journal:
            journal.append(decision(2))
        report = verify(directory)
        assert report.status is Status.INTACT, report.finding
        assert report.segments == 2


def test_a_missing_last_segment_refuses_the_next_writer(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.upkeep.segment_bytes = 4096
        for number in range(20):
            journal.append(decision(number))
    files.segments(directory)[-1][1].unlink()
    assert verify(directory).status is Status.TAMPERED
    with pytest.raises(JournalError, match="missing"):
        Journal.open(directory)


def test_a_live_file_that_was_replaced_or_grew_stops_the_writer(tmp_path: Path) -> None:
    for number, damage in enumerate(("replace", "grow", "unlink", "link")):
        directory = tmp_path / str(number) / "journal"
        journal = Journal.open(directory)
        path = segment(directory)
        if damage == "replace":
            content = path.read_bytes()
            path.unlink()
            path.write_bytes(content)
        elif damage == "grow":
            with path.open("ab") as stream:
                stream.write(b"x\n")
        elif damage == "unlink":
            path.unlink()
        else:
            (directory / "other").hardlink_to(path)
        journal.append(decision(1))
        with pytest.raises(JournalFaultError):
            journal.commit()
        with pytest.raises(JournalFaultError):
            journal.append(decision(2))
        journal.close()


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    if os.geteuid() != 0:
        pytest.skip("needs root to mount a small tmpfs")
    place = tmp_path / "disk"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(place)]
    if subprocess.run(mount, check=False, capture_output=True).returncode != 0:
        pytest.skip("this host lets nobody mount a tmpfs")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_full_disk_is_a_fault_and_loses_nothing_acknowledged(tiny_disk: Path) -> None:
    directory = tiny_disk / "journal"
    journal = Journal.open(directory)
    acknowledged = -1

    def fill() -> None:
        nonlocal acknowledged
        for number in range(100_000):
            journal.append(decision(number))
            acknowledged = journal.commit()

    with pytest.raises(JournalFaultError, match="No space left"):
        fill()
    with pytest.raises(JournalFaultError):
        journal.append(decision(0))
    with pytest.raises(JournalFaultError):
        journal.commit()
    journal.close()
    assert acknowledged > 10
    assert sum(1 for _ in read(directory)) > acknowledged
    subprocess.run(["mount", "-o", "remount,size=2m", str(tiny_disk)], check=True)
    with Journal.open(directory) as journal:
        journal.append(decision(1))
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    assert report.records > acknowledged
    faults = [record.reason or "" for record in read(directory, Filter(type="fault"))]
    assert len(faults) == 1
    assert "No space left" in faults[0]


def test_a_read_only_file_system_refuses_the_writer_and_changes_nothing(tiny_disk: Path) -> None:
    directory = tiny_disk / "journal"
    journal = Journal.open(directory)
    # A descriptor open for writing would keep the remount from happening at all.
    journal.append(decision(0))
    acknowledged = journal.commit()
    journal.close()
    subprocess.run(["mount", "-o", "remount,ro", str(tiny_disk)], check=True)
    before = segment(directory).read_bytes()
    with pytest.raises(JournalError):
        Journal.open(directory)
    assert segment(directory).read_bytes() == before
    subprocess.run(["mount", "-o", "remount,rw", str(tiny_disk)], check=True)
    with Journal.open(directory) as journal:
        journal.append(decision(1))
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    assert report.records > acknowledged + 1


def test_records_are_appended_while_others_are_committed(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.upkeep.segment_bytes = 100_000
        done = threading.Event()

        def commit() -> None:
            while not done.is_set():
                journal.commit()

        committing = threading.Thread(target=commit)
        committing.start()
        for number in range(5000):
            journal.append(decision(number))
            journal.tick()
        done.set()
        committing.join()
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    assert [r.attempt for r in read(directory, Filter(type="decision"))] == list(range(5000))


def test_an_entry_without_canonical_form_is_refused_and_leaves_no_trace(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        head = journal.head
        details: list[dict[str, object]] = [
            {"x": 1.5}, {"x": 2**53}, {"é": 1}, {"x": {"y": object()}}
        ]  # fmt: skip
        for detail in details:
            with pytest.raises(RecordError):
                journal.append(Entry(type=RecordType.FAULT, detail=detail))
        assert journal.head == head


def test_a_stray_surrogate_does_not_make_an_attempt_unrecordable(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.append(
            Entry(
                type=RecordType.DECISION,
                exe=os.fsdecode(b"/bin/\xff"),
                target={"path": "/\ud800", "argv": [os.fsdecode(b"\xfe")]},
                policy=POLICY,
            )
        )
    assert verify(tmp_path / "journal").status is Status.INTACT


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 1)
    directory.chmod(0o777)
    with pytest.raises(JournalError, match="writable by others"):
        Journal.open(directory)
