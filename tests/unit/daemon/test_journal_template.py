"""Lines that are made from a template are those that the encoder would make."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType, files
from safeclaw.daemon.journal.record import (
    MAX_INT,
    Record,
    RecordError,
    Subject,
    Template,
    decode,
    encode,
)
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify

COUNTS = st.integers(0, MAX_INT)
#: Text that looks like what the template searches for.
TEXT = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        ['"attempt":5,', 'attempt":1', "attempt", '\\"seq":7', '"ts":"', "latency_ns", '{"pid":1}']
    ),
)
KEYS = st.sampled_from(["path", "attempt", "pid", "prev", "seq", "ts", "to"])


def entry(
    number: int = 1, pid: int = 7, latency: int = 5, *, target: dict[str, object] | None = None
) -> Entry:
    return Entry(
        type=RecordType.DECISION,
        session="s-1",
        agent="tester",
        attempt=number,
        pid=pid,
        uid=1000,
        exe="/bin/a",
        action="file.read",
        target={"path": "/w/a"} if target is None else target,
        fingerprint="cd" * 32,
        decision="allow",
        rule="default:1",
        reason="because",
        policy=PolicyRef(name="default", sha256="ab" * 32, version="1.0"),
        enforced_by="openat",
        latency_ns=latency,
    )


@given(
    texts=st.tuples(*[TEXT] * 7),
    target=st.dictionaries(KEYS, st.one_of(TEXT, COUNTS), max_size=4),
    values=st.lists(st.tuples(*[COUNTS] * 5), min_size=1, max_size=3),
    leaf=st.binary(min_size=32, max_size=32),
)
def test_a_template_gives_what_the_encoder_gives(
    texts: tuple[str, ...],
    target: dict[str, object],
    values: list[tuple[int, ...]],
    leaf: bytes,
) -> None:
    def record(attempt: int, boottime: int, latency: int, seq: int, pid: int, prev: str) -> Record:
        action, agent, exe, reason, rule, name, ident = texts
        return Record(
            action=action,
            agent=agent,
            attempt=attempt,
            boot_id="b",
            boottime_us=boottime,
            chain="c" * 32,
            decision="allow",
            enforced_by="openat",
            fingerprint="cd" * 32,
            latency_ns=latency,
            policy=PolicyRef(name, "ab" * 32, "1.0"),
            prev=prev,
            reason=reason,
            rule=rule,
            seq=seq,
            session=ident,
            subject=Subject(exe=exe, pid=pid, uid=0),
            target=target,
            ts="2026-01-01T00:00:00.000001Z",
            type=RecordType.DECISION,
            v=1,
        )

    template = Template(record(1, 2, 3, 4, 5, "0" * 64))
    # The first is encoded; the template is made for the second.
    for attempt, boottime, latency, seq, pid in [*values, *values]:
        line = template.line(
            attempt=attempt,
            boottime_us=boottime,
            latency_ns=latency,
            prev=leaf.hex(),
            seq=seq,
            pid=pid,
            ts="2026-01-01T00:00:00.000001Z",
        )
        assert line == encode(record(attempt, boottime, latency, seq, pid, leaf.hex()))


def test_a_record_without_an_attempt_makes_no_template(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal, pytest.raises(RecordError):
        journal.template(Entry(type=RecordType.SESSION_END, session="s-1"))


def test_many_at_once_make_the_chain_that_one_by_one_would(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.upkeep.segment_bytes = 200_000
        a, b = journal.template(entry()), journal.template(entry(target={"path": "/w/\\x80"}))
        for start in range(0, 3000, 500):
            batch = [
                (a if number % 2 else b, number, 100 + number, number * 3)
                for number in range(start, start + 500)
            ]
            assert journal.append_all(batch) == journal.head[0]
            journal.commit()
    report = verify(tmp_path / "journal")
    assert report.status is Status.INTACT, report.finding
    lines = [
        line
        for _, path in files.segments(tmp_path / "journal")
        for line in path.read_bytes().splitlines()
    ]
    found = [decode(line) for line in lines if json.loads(line)["type"] == "decision"]
    assert [record.attempt for record in found] == list(range(3000))
    assert [record.latency_ns for record in found] == [number * 3 for number in range(3000)]
    assert {str(record.target) for record in found[1::2]} == {"{'path': '/w/a'}"}


def test_an_integer_that_has_no_canonical_form_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        template = journal.template(entry())
        before = journal.head
        with pytest.raises(RecordError):
            journal.append_all([(template, 1, 7, MAX_INT + 1)])
        assert journal.head == before
