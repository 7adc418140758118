"""Epochs, pruning, clocks and faults: what a journal does over the months."""

from __future__ import annotations

import fcntl
import os
import shutil
import threading
import time
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, keys, read, retention
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.note import NoteError
from safeclaw.daemon.journal.record import Record
from safeclaw.daemon.journal.report import Report, Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.errors import JournalError, JournalFaultError
from tests.journals import DAY, Host, decision, segment


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


def intact(directory: Path) -> Report:
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    return report


def types(directory: Path) -> list[str]:
    return [record.type for record in read(directory)]


def test_a_segment_ends_after_a_day_even_across_restarts(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    for day in range(3):
        with host.open(directory) as journal:
            journal.append(decision(day))
            journal.append(decision(day))
        host.passes(DAY)
    assert len(files.segments(directory)) == 3
    assert intact(directory).segments == 3


def test_old_segments_go_behind_a_record_and_the_rest_verifies(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    for day in range(150):
        with host.open(directory) as journal:
            journal.append(decision(day))
        host.passes(DAY)
    report = intact(directory)
    assert report.pruned > 100
    assert 100 <= report.segments <= 104
    first = files.segments(directory)[0][0]
    pruned = list(read(directory, Filter(type="prune")))[-1].detail
    assert pruned is not None
    assert pruned["through"] == files.segment_name(first - 1)
    assert pruned["retention_days"] == 100
    # The writer finds its head in what is left, with and without the cache.
    (directory / files.FRONTIER).unlink()
    with host.open(directory) as journal:
        journal.append(decision(1))
    intact(directory)


def test_what_the_start_records_keeps_to_the_retention_that_is_set(
    tmp_path: Path, host: Host
) -> None:
    directory, keeping = tmp_path / "journal", Keeping(retention_days=3650)
    for number in range(3):
        with host.open(directory, keeping) as journal:
            journal.append(decision(number))
        host.passes(60 * DAY)
    before = files.segments(directory)
    # Its record begins a segment.
    files.leave_fault_note(directory, "2026-01-01T00:00:00Z", "no space left")
    host.passes(2 * DAY)
    with host.open(directory, keeping):
        pass
    assert "fault" in types(directory)
    assert files.segments(directory)[: len(before)] == before
    intact(directory)


def test_a_segment_is_not_begun_where_the_key_is_gone(tmp_path: Path, host: Host) -> None:
    directory, key = tmp_path / "journal", tmp_path / "keys" / files.PRIVATE_KEY
    with host.open(directory) as journal:
        journal.append(decision(0))
    key.rename(tmp_path / "aside")
    host.passes(2 * DAY)
    journal = host.open(directory)
    for number in (1, 2):
        with pytest.raises(JournalError, match=r"journal\.key"):
            journal.append(decision(number))
    journal.commit()
    (tmp_path / "aside").rename(key)
    journal.append(decision(3))
    journal.close()
    assert intact(directory).segments == 2


def test_under_90_days_is_refused_without_an_override(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        for day in range(5):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        before = files.segments(directory)
        with pytest.raises(JournalError, match="under 90"):
            journal.prune(89)
        journal.commit()
        assert files.segments(directory) == before
        assert journal.prune(2, override=True) > 0
        assert files.segments(directory) == before  # only recorded, not yet on disk
        journal.commit()
        assert len(files.segments(directory)) < len(before)
    intact(directory)
    assert list(read(directory, Filter(type="prune")))[-1].detail is not None


def test_a_crash_between_the_record_and_the_deletion_verifies(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        for day in range(6):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        shutil.copytree(directory, tmp_path / "before")
        assert journal.prune(1, override=True) == 5
    for kept in range(1, 7):
        # What was deleted comes back, from the newest on.
        copy = tmp_path / f"copy-{kept}"
        shutil.copytree(directory, copy)
        for number in range(kept, 6):
            shutil.copy(segment(tmp_path / "before", number), segment(copy, number))
        intact(copy)


def test_a_segment_that_ends_while_others_are_deleted_prunes_nothing(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "journal"
    deleting, looked, halfway = threading.Event(), threading.Event(), threading.Event()
    unlink, first_record = Path.unlink, retention.first_record

    def slowly(path: Path, missing_ok: bool = False) -> None:
        deleting.set()
        assert looked.wait(60)
        unlink(path, missing_ok)
        if path == segment(directory, 3):
            halfway.set()

    def meanwhile(path: Path) -> Record | None:
        found = first_record(path)
        if path == segment(directory, 1):
            looked.set()
            assert halfway.wait(60)
        return found

    with host.open(directory) as journal:
        for day in range(6):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        journal.prune(1, override=True)
        monkeypatch.setattr(Path, "unlink", slowly)
        monkeypatch.setattr(retention, "first_record", meanwhile)
        committing = threading.Thread(target=journal.commit)
        committing.start()
        assert deleting.wait(60)
        assert journal.prune(1, override=True) == 0
        looked.set()
        committing.join()
        journal.commit()
        # and the next one is not kept from anything
        for day in range(3):
            host.passes(DAY)
            journal.append(decision(day))
            journal.commit()
        assert journal.prune(1, override=True) > 0
    intact(directory)


def test_an_epoch_ends_with_the_old_key_erased(tmp_path: Path) -> None:
    directory, key_directory = tmp_path / "journal", tmp_path / "keys"
    private = key_directory / files.PRIVATE_KEY
    seeds: list[bytes] = []
    with Journal.open(directory) as journal:
        for epoch in range(3):
            journal.append(decision(epoch))
            journal.commit()
            seeds.append(private.read_bytes())
            held = os.open(private, os.O_RDONLY)
            journal.roll_key()
            assert private.read_bytes() == seeds[-1]  # not before it is on disk
            journal.commit()
            assert private.read_bytes() != seeds[-1]
            # Not even a descriptor from before reads the old key.
            assert set(os.pread(held, 1000, 0)) == {0}
            os.close(held)
            assert not (key_directory / keys.NEXT_KEY).exists()
    report = intact(directory)
    assert report.epochs == 4
    given = keys.read_public_keys(key_directory / files.PUBLIC_KEY)
    assert len(given) == 4
    assert verify(directory, public_key=given).headline == "intact"
    assert verify(directory, public_key=given[0]).headline == "intact"
    assert verify(directory, public_key=given[1]).status is Status.TAMPERED
    ring = keys.read_keyring(directory)
    assert ring is not None
    assert ring.keys() == given


def test_a_checkpoint_kept_from_an_earlier_epoch_still_counts(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.append(decision(0))
    kept = ("kept", (directory / files.CHECKPOINT).read_text())
    with Journal.open(directory) as journal:
        journal.roll_key()
        journal.append(decision(1))
    assert verify(directory, checkpoints=[kept]).headline == "intact"


@pytest.mark.parametrize("stop_after", range(12))
def test_a_roll_that_a_crash_interrupts_is_completed_or_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int
) -> None:
    """Every system call that changes the directories may be the last one."""
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.append(decision(0))
    child = os.fork()
    if child == 0:
        try:
            journal = Journal.open(directory)
            left = stop_after

            def counted(name: str) -> None:
                original = getattr(os, name)

                def call(*arguments: object, **options: object) -> object:
                    nonlocal left
                    if left == 0:
                        os._exit(0)
                    left -= 1
                    return original(*arguments, **options)

                monkeypatch.setattr(os, name, call)

            for name in ("write", "pwrite", "rename"):
                counted(name)
            journal.roll_key()
            journal.commit()
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    with Journal.open(directory) as journal:
        journal.append(decision(1))
        journal.checkpoint()
    report = intact(directory)
    assert not (tmp_path / "keys" / keys.NEXT_KEY).exists()
    given = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)
    assert len(given) == report.epochs
    assert verify(directory, public_key=given).headline == "intact"


def test_the_key_is_rolled_at_a_rotation_once_it_is_a_week_old(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        os.utime(tmp_path / "keys" / files.PRIVATE_KEY, (host.wall_ns / 1e9, host.wall_ns / 1e9))
        for day in range(9):
            journal.append(decision(day))
            host.passes(DAY)
    assert types(directory).count("key_change") == 1
    assert intact(directory).epochs == 2


def test_a_pruned_chain_is_vouched_for_by_the_key_of_its_genesis(
    tmp_path: Path, host: Host
) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        genesis = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)[0]
        for day in range(5):
            journal.append(decision(day))
            journal.roll_key()
            journal.commit()
            host.passes(DAY)
        assert journal.prune(1, override=True) > 1
    report = verify(directory, public_key=genesis)
    assert (report.headline, report.epochs) == ("intact", 6), report.finding
    (directory / keys.KEYRING).unlink()
    assert verify(directory).status is Status.INTACT
    assert verify(directory, public_key=genesis).exit_status == 3


def test_a_certificate_needs_both_signatures(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        certificate = journal.roll_key()
    old, new = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)
    assert keys.open_certificate(certificate, old).key == new
    lines = certificate.splitlines(keepends=True)
    for missing in (-1, -2):
        with pytest.raises(NoteError):
            keys.open_certificate("".join(line for line in lines if line != lines[missing]), old)


def test_a_clock_set_while_no_writer_was_there_is_recorded(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    for step in (3600, -7200):
        with host.open(directory) as journal:
            journal.append(decision(0))
        host.passes(10**9)
        host.step(step * 10**9)
        with host.open(directory) as journal:
            journal.append(decision(1))
    steps = [record.detail for record in read(directory, Filter(type="clock_step"))]
    assert steps == [{"step_us": 3_600_000_000}, {"step_us": -7_200_000_000}]
    intact(directory)


def test_a_clock_set_back_across_a_reboot_is_said(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        journal.append(decision(0))
    host.reboot()
    host.step(-3600 * 10**9)
    with host.open(directory) as journal:
        journal.append(decision(1))
    assert any("after a reboot" in note for note in intact(directory).notes)


def test_a_fault_is_in_the_chain_once_it_can_be_written(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    journal = Journal.open(directory)
    segment(directory).rename(tmp_path / "aside")
    journal.append(decision(0))
    with pytest.raises(JournalFaultError):
        journal.commit()
    journal.close()
    (tmp_path / "aside").rename(segment(directory))
    for _ in range(2):
        with Journal.open(directory) as journal:
            journal.append(decision(1))
    faults = list(read(directory, Filter(type="fault")))
    assert len(faults) == 1
    assert faults[0].reason is not None
    assert str(directory) in faults[0].reason
    assert faults[0].detail is not None
    at = retention.moment(str(faults[0].detail["at"]).replace("Z", ".0Z"))
    assert at <= retention.moment(faults[0].ts)
    intact(directory)


def test_silence_has_a_heartbeat(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        for _ in range(3):
            host.passes(61 * 10**9)
            assert journal.tick()
            journal.commit()
    assert types(directory).count("heartbeat") == 3
    intact(directory)


def test_a_roll_that_a_crash_tore_is_undone_with_the_tail(tmp_path: Path) -> None:
    """The chain was cut in its key_change, and what follows is garbage."""
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.append(decision(0))
    name = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)[0].name
    keys.stage(tmp_path / "keys", name)
    with segment(directory).open("ab") as stream:
        stream.write(b'{"type":"key_change"}\n{"type":"ke')
    with Journal.open(directory) as journal:
        journal.append(decision(1))
    assert not (tmp_path / "keys" / keys.NEXT_KEY).exists()
    assert intact(directory).epochs == 1
    assert types(directory).count("recovery") == 1


def test_undoing_a_roll_may_be_interrupted_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, key_directory = tmp_path / "journal", tmp_path / "keys"
    with Journal.open(directory) as journal:
        journal.append(decision(0))
    keys.stage(key_directory, "safeclaw/any")
    with monkeypatch.context() as crash:
        crash.setattr(Path, "unlink", _die)
        with pytest.raises(KeyboardInterrupt):
            Journal.open(directory)
    assert set((key_directory / keys.NEXT_KEY).read_bytes()) == {0}
    with Journal.open(directory) as journal:
        journal.append(decision(1))
    assert not (key_directory / keys.NEXT_KEY).exists()
    assert intact(directory).epochs == 1


def _die(*_: object, **__: object) -> None:
    raise KeyboardInterrupt


def test_a_key_that_cannot_be_rolled_stops_nothing(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        journal.append(decision(0))
        (tmp_path / "keys").rename(tmp_path / "away")
        for day in range(9):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        (tmp_path / "away").rename(tmp_path / "keys")
    assert intact(directory).epochs == 1


def test_a_key_that_is_rolled_beside_a_verification_is_no_false_alarm(
    tmp_path: Path, host: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "journal"
    whole = files.segments
    with host.open(directory) as journal:
        journal.roll_key()
        journal.commit()

        def meanwhile(place: Path) -> list[tuple[int, Path]]:
            """Roll the key and prune all that it did not sign, just before the files are listed."""
            monkeypatch.setattr(files, "segments", whole)
            journal.roll_key()
            for day in range(3):
                host.passes(DAY)
                journal.append(decision(day))
            journal.commit()
            assert journal.prune(1, override=True) > 0
            journal.commit()
            return whole(place)

        monkeypatch.setattr(files, "segments", meanwhile)
        assert intact(directory).epochs == 3
    assert files.segments(directory)[0][0] > 1


def test_a_writer_that_is_stopped_between_two_clocks_writes_no_impossible_time(
    tmp_path: Path, host: Host
) -> None:
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        for number in range(4):
            host.passes_at_look(number, DAY)
            journal.append(decision(number))
    report = intact(directory)
    assert "clock_step" not in types(directory)
    assert report.records > 4


def test_who_only_looks_for_a_writer_keeps_none_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.append(decision(0))
    looking = os.open(directory / files.LOCK, os.O_RDONLY)
    fcntl.flock(looking, fcntl.LOCK_SH)

    def has_looked(_seconds: float) -> None:
        os.close(looking)

    monkeypatch.setattr(time, "sleep", has_looked)
    with Journal.open(directory) as journal:
        journal.append(decision(1))
    intact(directory)


def test_a_record_without_a_time_stops_no_writer(tmp_path: Path, host: Host) -> None:
    directory = tmp_path / "journal"
    for day in range(3):
        with host.open(directory) as journal:
            journal.append(decision(day))
        host.passes(DAY)
    path = files.segments(directory)[1][1]
    lines = path.read_bytes().split(b"\n")
    lines[0] = lines[0].replace(b'"ts":"2026-', b'"ts":"XXXX-')
    path.write_bytes(b"\n".join(lines))
    newest = files.segments(directory)[-1][1]
    head, found, tail = newest.read_bytes().rpartition(b'"ts":"2026-')
    assert found
    newest.write_bytes(head + b'"ts":"XXXX-' + tail)
    with host.open(directory) as journal:
        journal.append(decision(9))
        with pytest.raises(JournalError, match="no time"):
            journal.prune(1, override=True)
    assert verify(directory).status is Status.TAMPERED
