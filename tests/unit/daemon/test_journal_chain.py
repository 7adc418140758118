"""A chain that was changed on disk, and what a verifier finds."""

from __future__ import annotations

import shutil
import threading
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Journal, files, read, verifier
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.report import Report, Status
from safeclaw.daemon.journal.verifier import verify
from tests.journals import POLICY, decision, found, segment, write_chain


def test_a_chain_that_was_closed_is_internally_consistent(tmp_path: Path) -> None:
    report = verify(write_chain(tmp_path, 3))
    assert report.status is Status.INTACT, report.finding
    assert report.headline == "internally consistent"
    assert report.records == report.signed == 5  # genesis, three decisions, a checkpoint
    assert any("rewrote all of it" in line for line in report.open_questions())


def test_records_read_back_as_they_were_given(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 3)
    records = list(read(directory, Filter(type="decision")))
    assert [record.attempt for record in records] == [0, 1, 2]
    first = records[0]
    assert (first.action, first.decision, first.policy) == ("file.read", "allow", POLICY)
    assert first.subject is not None
    assert (first.subject.pid, first.subject.uid) == (7, 1000)
    assert [r.attempt for r in read(directory, Filter(action="file"), last=1)] == [2]
    assert not list(read(directory, Filter(decision="deny")))


def test_every_flipped_byte_is_found(tmp_path: Path) -> None:
    path = segment(write_chain(tmp_path, 2))
    content = path.read_bytes()
    for position in range(len(content)):
        for bit in (1, 0x20):
            broken = bytearray(content)
            broken[position] ^= bit
            path.write_bytes(broken)
            line = content.count(b"\n", 0, position) + 1
            finding = found(path.parent)
            assert finding.segment == path.name
            # A changed record is seen at the latest where the next one links to it.
            assert line <= finding.line <= line + 1, (position, finding)
    path.write_bytes(content)
    assert verify(path.parent).status is Status.INTACT


def test_every_flipped_byte_of_the_checkpoint_file_is_found(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 1)
    path = directory / files.CHECKPOINT
    content = path.read_bytes()
    for position in range(len(content)):
        broken = bytearray(content)
        broken[position] ^= 1
        path.write_bytes(broken)
        assert verify(directory).status is Status.TAMPERED, position


def test_every_deleted_duplicated_inserted_or_reordered_line_is_found(tmp_path: Path) -> None:
    path = segment(write_chain(tmp_path, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    for index in range(len(lines)):
        without = lines[:index] + lines[index + 1 :]
        path.write_bytes(b"".join(without))
        assert found(path.parent).line in (index, index + 1)
        path.write_bytes(b"".join([*lines[: index + 1], lines[index], *lines[index + 1 :]]))
        assert found(path.parent).line == index + 2
        foreign = lines[index].replace(b'"reason":"because"', b'"reason":"why not"')
        path.write_bytes(b"".join([*lines[:index], foreign, *lines[index:]]))
        assert found(path.parent).line in (index + 1, index + 2)
        if index:
            swapped = [*lines[: index - 1], lines[index], lines[index - 1], *lines[index + 1 :]]
            path.write_bytes(b"".join(swapped))
            assert found(path.parent).line == index


def test_a_tail_cut_behind_a_checkpoint_is_found_and_named(tmp_path: Path) -> None:
    path = segment(write_chain(tmp_path, 4))
    lines = path.read_bytes().splitlines(keepends=True)
    for kept in range(len(lines)):
        path.write_bytes(b"".join(lines[:kept]))
        finding = found(path.parent)
        assert "cut off" in finding.what
        assert finding.seq == kept


def test_a_tail_cut_with_its_checkpoint_is_found_by_one_kept_elsewhere(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 2)
    shutil.copytree(directory, tmp_path / "old")
    with Journal.open(directory) as journal:
        journal.append(decision(2))
    kept = verifier.read_checkpoint(directory / files.CHECKPOINT)
    assert verify(directory, checkpoints=[kept]).headline == "intact"
    report = verify(tmp_path / "old", checkpoints=[kept])
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    assert "cut off" in report.finding.what


def test_a_chain_rebuilt_with_another_key_is_found_by_the_public_key(tmp_path: Path) -> None:
    write_chain(tmp_path / "a", 2)
    directory = write_chain(tmp_path / "b", 2)
    key = files.read_public_key(tmp_path / "a" / "keys" / files.PUBLIC_KEY)
    assert verify(tmp_path / "a" / "journal", public_key=key).headline == "intact"
    assert verify(directory, public_key=key).status is Status.TAMPERED


def test_lines_of_another_chain_are_found(tmp_path: Path) -> None:
    ours = segment(write_chain(tmp_path / "a", 2))
    theirs = segment(write_chain(tmp_path / "b", 2))
    lines = ours.read_bytes().splitlines(keepends=True)
    lines[2] = theirs.read_bytes().splitlines(keepends=True)[2]
    ours.write_bytes(b"".join(lines))
    assert found(ours.parent).line == 3


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b'"pid":7', b'"pid":7.0'),
        (b'"pid":7', b'"pid":7,"pid":7'),
        (b'"pid":7', b'"pid": 7'),
        (b'"v":1', b'"v":2'),
        (b',"v":1', b""),
        (b'"reason":"because"', b'"reason":"becaus\\u0065"'),
        (b'"action"', b'"acti\\u006fn"'),
        (b"}\n", b"}\r\n"),
    ],
)
def test_another_encoding_of_the_same_record_is_refused(
    tmp_path: Path, old: bytes, new: bytes
) -> None:
    path = segment(write_chain(tmp_path, 1))
    lines = path.read_bytes().splitlines(keepends=True)
    assert old in lines[1]
    lines[1] = lines[1].replace(old, new, 1)
    path.write_bytes(b"".join(lines))
    assert found(path.parent).line == 2


def test_segments_follow_each_other_and_a_missing_one_is_named(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        journal.upkeep.segment_bytes = 4096
        for number in range(40):
            journal.append(decision(number))
    report = verify(directory)
    assert report.status is Status.INTACT, report.finding
    assert report.segments > 3
    with Journal.open(directory) as journal:
        journal.append(decision(40))
    assert verify(directory).records == report.records + 2
    segment(directory, 2).rename(tmp_path / "elsewhere")
    assert found(directory).segment == files.segment_name(2)
    (tmp_path / "elsewhere").rename(segment(directory, 2))
    segment(directory, 1).unlink()
    assert found(directory).segment == files.segment_name(1)


def test_a_chain_can_be_verified_while_it_is_written(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    reports: list[Report] = []
    with Journal.open(directory) as journal:
        done = threading.Event()

        def judge() -> None:
            while not done.is_set():
                reports.append(verify(directory))

        judging = threading.Thread(target=judge)
        judging.start()
        try:
            for number in range(4000):
                journal.append(decision(number))
                if number % 50 == 0:
                    journal.commit()
        finally:
            done.set()
            judging.join()
    assert reports
    assert all(report.status is Status.INTACT for report in reports)


def test_what_is_not_there_or_not_readable_is_incomplete(tmp_path: Path) -> None:
    assert verify(tmp_path / "nowhere").exit_status == 3
    assert verify(tmp_path).exit_status == 3
    directory = write_chain(tmp_path, 1)
    (directory / files.CHECKPOINT).unlink()
    assert verify(directory).exit_status == 3
