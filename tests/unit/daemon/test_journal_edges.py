"""A journal before its first record, and between two segments."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from safeclaw.daemon.journal import Journal, files, reader, record
from safeclaw.daemon.journal.clocks import ClockError, Clocks
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.record import MAX_LINE, encode
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from safeclaw.errors import JournalError
from tests.journals import DAY, Host, decision
from tests.standalone import standalone


def write_chain(state: Path) -> Path:
    """Write a closed chain; return its directory."""
    with Journal.open(state / "journal") as journal:
        journal.append(decision(0))
    return state / "journal"


@pytest.mark.parametrize("content", [b"", b'{"action'])
def test_a_crash_before_the_first_record_is_no_tampering(tmp_path: Path, content: bytes) -> None:
    state = tmp_path / "state"
    directory = state / "journal"
    directory.mkdir(parents=True)
    (directory / files.segment_name(1)).write_bytes(content)
    assert verify(directory).status is Status.INCOMPLETE
    assert standalone(directory) == 3
    kept = tmp_path / "kept"
    shutil.copy(write_chain(tmp_path / "other") / files.CHECKPOINT, kept)
    assert verify(directory, checkpoints=[read_checkpoint(kept)]).exit_status == 1
    assert standalone(directory, checkpoint=kept) == 1
    assert verify(write_chain(state)).status is Status.INTACT


@pytest.mark.filterwarnings("ignore:The asyncore module:DeprecationWarning")  # pyinotify's
def test_what_is_written_just_before_a_segment_ends_is_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory = tmp_path / "journal"
    exists = Path.exists
    with Journal.open(directory) as journal:
        following = reader.follow(directory, Filter(type="decision"), last=1)
        journal.append(decision(0))
        journal.commit()
        assert next(following).attempt == 0
        first = journal.head[0]

        def meanwhile(path: Path) -> bool:
            if path.name == files.segment_name(2) and journal.head[0] == first:
                journal.append(decision(1))
                journal.commit()
                journal.upkeep.segment_bytes = 1
                journal.append(decision(2))
                journal.upkeep.segment_bytes = 1 << 20
                journal.append(decision(3))
                journal.commit()
            return exists(path)

        monkeypatch.setattr(Path, "exists", meanwhile)
        for number in (1, 2, 3):
            assert next(following).attempt == number


def test_what_is_pruned_while_somebody_begins_to_read_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, host = tmp_path / "journal", Host(monkeypatch)
    with host.open(directory) as journal:
        for day in range(6):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        listed = files.segments(directory)
        assert journal.prune(4, override=True) > 0
    left = list(reader.read(directory))

    def before(_directory: Path) -> list[tuple[int, Path]]:
        return listed

    monkeypatch.setattr(files, "segments", before)
    assert list(reader.read(directory)) == left
    # but not what is missing in the middle
    listed[-2][1].unlink()
    with pytest.raises(JournalError, match="No such file"):
        list(reader.read(directory))


def test_a_writer_that_begins_during_a_verification_is_no_fault(tmp_path: Path) -> None:
    directory = write_chain(tmp_path)
    with files.segments(directory)[-1][1].open("ab") as segment:
        segment.write(b'{"torn":')  # as a crash leaves it
    writers: list[Journal] = []

    def begins(_done: int, _all: int) -> None:
        if not writers:
            writers.append(Journal.open(directory))

    report = verify(directory, progress=begins)
    assert (report.status, report.finding) == (Status.INTACT, None)
    assert any("a writer is at work" in note for note in report.notes)
    writers[0].close()


def test_what_a_writer_told_journald_during_a_verification_is_no_cut_off_tail(
    tmp_path: Path,
) -> None:
    directory = write_chain(tmp_path)
    came: list[int] = []

    def heard() -> Iterator[tuple[int, str]]:
        lines = [line for _, _, line in reader.lines(directory)]
        yield from enumerate(leaf_hash(line).hex() for line in lines)
        if not came:
            with Journal.open(directory) as journal:  # it comes and goes
                came.append(journal.append(decision(9)))
            late = [line for _, _, line in reader.lines(directory)][len(lines) :]
            yield from enumerate((leaf_hash(line).hex() for line in late), len(lines))

    report = verify(directory, heard=heard)
    assert came
    assert (report.status, report.finding) == (Status.INTACT, None)


def test_a_verification_against_journald_begins_again_when_it_is_pruned_beneath(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    directory, host = tmp_path / "journal", Host(monkeypatch)
    with host.open(directory) as journal:
        for day in range(6):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        pruned: list[int] = []

        def prunes(_done: int, _all: int) -> None:
            if not pruned:
                pruned.append(journal.prune(4, override=True))
                journal.commit()

        report = verify(directory, heard=list, progress=prunes)
    assert pruned[0] > 1
    assert (report.status, report.finding) == (Status.INTACT, None)


@pytest.mark.parametrize("ts", ["2026-01-01t00:00:00.000000Z", "2026-01-01T00:00:0\u0663.000000Z"])
def test_a_time_that_the_writer_never_makes_is_none(tmp_path: Path, ts: str) -> None:
    first = next(reader.read(write_chain(tmp_path)))
    with pytest.raises(ClockError, match="not a time"):
        Clocks().follow(msgspec.structs.replace(first, ts=ts))


def test_a_name_that_the_writer_never_makes_is_no_segment(tmp_path: Path) -> None:
    directory = write_chain(tmp_path)
    (directory / "segment-0000002.jsonl").write_bytes(b"no record\n")
    assert verify(directory).status is Status.INTACT
    assert standalone(directory) == 0


def test_a_line_that_is_one_byte_too_long_is_too_long_for_both(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The auditor's script is told the same limit as the writer, here that of its lines."""
    monkeypatch.setattr(record, "MAX_LINE", MAX_LINE + 1)
    with Journal.open(tmp_path / "journal") as journal:
        entry = decision(1)
        line = encode(journal.template(entry)._record)  # pyright: ignore[reportPrivateUsage]
        reason = "x" * (MAX_LINE + 1 - len(line) + len(entry.reason or ""))
        journal.append(msgspec.structs.replace(entry, reason=reason))
    monkeypatch.undo()
    lines = [
        len(one) for one in (tmp_path / "journal/segment-000001.jsonl").read_bytes().split(b"\n")
    ]
    assert MAX_LINE + 1 in lines
    assert verify(tmp_path / "journal").status is Status.TAMPERED
    assert standalone(tmp_path / "journal") == 1
