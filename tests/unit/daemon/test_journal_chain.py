"""The chain on disk: what a writer leaves, what a verifier finds."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeclaw.daemon.journal import Entry, Journal, RecordType, files, read, verifier
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash, node_hash
from safeclaw.daemon.journal.note import NoteError, PublicKey, SigningKey, open_note
from safeclaw.daemon.journal.record import Record, RecordError, decode, encode
from safeclaw.daemon.journal.report import Finding, Report, Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.errors import JournalError, JournalFaultError
from tests.journals import POLICY, decision, segment


def write_chain(state: Path, count: int) -> Path:
    """Write a closed chain of ``count`` decisions; return its directory."""
    with Journal.open(state / "journal") as journal:
        for number in range(count):
            journal.append(decision(number))
        journal.commit()
    return state / "journal"


def found(directory: Path) -> Finding:
    report = verify(directory)
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    return report.finding


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


def test_a_cut_tail_refuses_the_next_writer(tmp_path: Path) -> None:
    path = segment(write_chain(tmp_path, 4))
    content = path.read_bytes()
    path.write_bytes(b"".join(content.splitlines(keepends=True)[:-2]))
    with pytest.raises(JournalError):
        Journal.open(path.parent)


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


def test_what_is_not_there_or_not_readable_is_incomplete(tmp_path: Path) -> None:
    assert verify(tmp_path / "nowhere").exit_status == 3
    assert verify(tmp_path).exit_status == 3
    directory = write_chain(tmp_path, 1)
    (directory / files.CHECKPOINT).unlink()
    assert verify(directory).exit_status == 3


def test_a_directory_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    directory = write_chain(tmp_path, 1)
    directory.chmod(0o777)
    with pytest.raises(JournalError, match="writable by others"):
        Journal.open(directory)


# Pure parts.

text = st.text(max_size=30)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(max_codepoint=126), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    detail=st.dictionaries(st.text(st.characters(max_codepoint=126), max_size=9), plain, max_size=4)
)
@settings(deadline=None)
def test_a_record_has_one_encoding_and_survives_it(detail: dict[str, object]) -> None:
    record = Record(
        boot_id="b",
        boottime_us=1,
        chain="c",
        detail=detail,
        prev="0" * 64,
        seq=0,
        ts="t",
        type=RecordType.FAULT,
        v=1,
    )
    line = encode(record)
    assert b"\n" not in line
    assert encode(decode(line)) == line
    assert json.loads(line)["detail"] == detail
    # The same JSON, written by anyone else, is not a record.
    other = json.dumps(json.loads(line)).encode()
    with pytest.raises(RecordError):
        decode(other)


@given(st.lists(st.binary(max_size=4), max_size=40))
def test_the_frontier_has_the_root_that_rfc_6962_defines(lines: list[bytes]) -> None:
    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return node_hash(root(leaves[:split]), root(leaves[split:]))

    frontier = Frontier()
    leaves = [leaf_hash(line) for line in lines]
    for leaf in leaves:
        frontier.append(leaf)
    if leaves:
        assert frontier.root() == root(leaves)


@given(st.binary(min_size=32, max_size=32), st.text("ab \n", max_size=9))
@settings(deadline=None)
def test_a_note_opens_with_its_key_and_no_other(seed: bytes, body: str) -> None:
    key = SigningKey("name", seed)
    text = body.replace("\n\n", "\n") + "x\n"
    assert PublicKey.parse(key.public.text()) == key.public
    if "\n\n" not in text:
        note = key.sign(text)
        assert open_note(note, key.public) == text
        other = SigningKey("name", bytes(32) if seed != bytes(32) else b"\x01" * 32)
        with pytest.raises(NoteError):
            open_note(note, other.public)
