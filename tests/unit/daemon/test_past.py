"""What a session that comes back is told of itself, whatever stands in the journal beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.past import Past, read_past
from safeclaw.errors import BrokerError

MINE, OTHER = "0123456789abcdef", "fedcba9876543210"


def past_of(directory: Path, session: str, *, uid: int = 1000, agent: str = "a") -> Past:
    return read_past(directory, session, uid=uid, agent=agent, known=lambda _: None)


def entry(session: str, kind: RecordType, attempt: int, uid: int = 1000, agent: str = "a") -> Entry:
    decided = kind is RecordType.DECISION
    return Entry(
        type=kind,
        session=session,
        agent=agent,
        uid=uid,
        attempt=attempt,
        decision=("deny" if attempt % 2 else "allow") if decided else None,
        # as an agent may spell it, to be taken for somebody else
        reason=f'"session":"{MINE}"' if session == OTHER else None,
    )


@pytest.fixture(name="directory")
def _directory(tmp_path: Path) -> Path:
    with Journal.open(tmp_path / "journal") as journal:
        journal.upkeep.segment_bytes = 4000
        for number in range(1, 101):
            kind = RecordType.SESSION_START if number == 1 else RecordType.DECISION
            journal.append(entry(OTHER, kind, number, uid=7, agent="b"))
        for number in range(1, 41):
            kind = RecordType.SESSION_START if number == 1 else RecordType.DECISION
            journal.append(entry(MINE, kind, number))
            journal.append(entry(OTHER, RecordType.DECISION, 100 + number, uid=7, agent="b"))
    assert len(files.segments(tmp_path / "journal")) > 10
    return tmp_path / "journal"


def test_its_records_are_counted_over_all_segments(directory: Path) -> None:
    past = past_of(directory, MINE)
    assert past == Past(MINE, recorded=40, decisions=39, denials=19)


def test_what_is_older_than_its_start_is_not_read(directory: Path) -> None:
    _, oldest = files.segments(directory)[0]
    oldest.write_bytes(b'"session":"0123456789abcdef" and no record\n')
    assert past_of(directory, MINE).recorded == 40


@pytest.mark.parametrize(
    ("session", "uid", "agent", "reason"),
    [
        (MINE, 1001, "a", "another user's"),
        (MINE, 1000, "b", "another agent's"),
        ("0" * 16, 1000, "a", "no such session"),
    ],
)
def test_anothers_and_nobodys_are_refused(
    directory: Path, session: str, uid: int, agent: str, reason: str
) -> None:
    with pytest.raises(BrokerError, match=reason):
        past_of(directory, session, uid=uid, agent=agent)


def test_an_end_is_seen(directory: Path) -> None:
    with Journal.open(directory) as journal:
        journal.append(entry(MINE, RecordType.SESSION_END, 41))
    assert past_of(directory, MINE).ended
