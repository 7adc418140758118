"""Whose records are whose, whatever is written in them; and how much is held at once."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from safeclaw.daemon import control, readout
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.record import Entry, RecordType, decode
from safeclaw.errors import JournalError

ANN, BOB = 1000, 10001  # one number begins with the other


@pytest.fixture(name="journal")
def _journal(tmp_path: Path) -> Path:
    directory = tmp_path / "journal"
    with_uid = f'"uid":{ANN}'
    with Journal.open(directory) as journal:
        for entry in (
            Entry(type=RecordType.SESSION_START, session="a", agent="x", uid=ANN),
            Entry(
                type=RecordType.DECISION,
                session="a",
                uid=ANN,
                action="file.read",
                target={"path": "/mine"},
                decision="deny",
            ),
            Entry(
                type=RecordType.DECISION,
                session="b",
                uid=BOB,
                action="file.read",
                target={"path": f"/not {with_uid} mine"},
                decision="allow",
                detail={"uid": ANN, "subject": {"uid": ANN}},
            ),
            Entry(type=RecordType.AGENT_CHANGE, agent="x", uid=ANN, detail={"event": "added"}),
            Entry(type=RecordType.KILL, uid=ANN, detail={"order": "stop"}),
            Entry(type=RecordType.RECOVERY, session="c"),
        ):
            journal.append(entry)
        journal.commit()
    return directory


def paths(journal: Path, uid: int | None, request: control.Records) -> list[tuple[str, str]]:
    records = map(decode, readout.chosen(journal, uid, request))
    return [(str(one.type), one.session or "") for one in records]


def test_a_user_sees_the_records_of_own_sessions_and_no_others(journal: Path) -> None:
    assert paths(journal, ANN, control.Records()) == [("session_start", "a"), ("decision", "a")]
    assert paths(journal, BOB, control.Records()) == [("decision", "b")]
    assert paths(journal, 100, control.Records()) == []
    assert paths(journal, ANN, control.Records(session="b")) == []
    assert paths(journal, ANN, control.Records(decision="deny")) == [("decision", "a")]
    # the same without a user: everything is there to be shown
    everything = paths(journal, None, control.Records())
    assert len(everything) > 6
    assert paths(journal, None, control.Records(session="b")) == [("decision", "b")]


def test_the_newest_are_few_and_fit_into_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = [b"%d" % number for number in range(100)]
    assert list(readout.newest(lines, 3)) == [b"97", b"98", b"99"]
    assert list(readout.newest(lines, 0)) == []
    monkeypatch.setattr(readout, "_HELD_MAX", 4)
    assert list(readout.newest(lines, 50)) == [b"98", b"99"]


@pytest.mark.parametrize("size", [1, 100, 30_000, 200_000])
def test_lines_of_any_length_arrive_as_they_are(size: int) -> None:
    lines = [b'{"a":"%b%d"}' % (b"x" * size, number) for number in range(5)]
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    sender, receiver = Channel(left, message_max=1 << 20), Channel(right, message_max=1 << 20)
    assert readout.send(lines, sender) == 5
    sender.close()
    found: list[bytes] = []
    while data := receiver.receive(60):
        found += map(bytes, control.decode_batch(data))
    receiver.close()
    assert found == lines


def test_a_line_that_is_no_record_is_named(journal: Path) -> None:
    with (journal / "segment-000001.jsonl").open("ab") as out:
        out.write(b'{"session":"z","subject":{"uid":1000}}\n')
    with pytest.raises(JournalError, match=r"segment-000001.jsonl:\d+: "):
        paths(journal, ANN, control.Records())
    assert paths(journal, BOB, control.Records()) == [("decision", "b")]
