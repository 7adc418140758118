"""The forwarder against a real systemd-journald in a mount namespace of its own."""

from __future__ import annotations

import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType, files, read
from safeclaw.daemon.journal.copied import Copied
from safeclaw.daemon.journal.heard import journald_entries
from safeclaw.daemon.journal.journald import Forwarder, message_id
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from tests.real_journald import JOURNALD, Journald


@pytest.fixture
def journald(tmp_path: Path) -> Iterator[Journald]:
    if os.geteuid() != 0 or not JOURNALD.exists():
        pytest.skip("needs root and systemd-journald")
    if subprocess.run(["unshare", "--mount", "true"], check=False).returncode != 0:
        pytest.skip("needs a mount namespace")
    one = Journald(tmp_path)
    try:
        yield one
    finally:
        one.close()


def fill(journal: Journal, count: int) -> None:
    for number in range(count):
        journal.append(
            Entry(
                type=RecordType.DECISION,
                session="s-1",
                agent="tester",
                attempt=number,
                action="file.read",
                target={"path": f"/secrets/{number}"},
                decision="deny" if number % 2 else "allow",
                rule="default:2",
                reason="two\nlines",
                fingerprint="cd" * 32,
                policy=PolicyRef(name="default", sha256="ab" * 32, version="1.0"),
            )
        )
    journal.commit()


def forward(journald: Journald, directory: Path, journal: Journal) -> None:
    forwarder = Forwarder(directory, journal.chain_id, journald.socket)
    assert forwarder.pump(journal.durable) == 0
    assert forwarder.problem is None
    forwarder.close()


def test_every_record_arrives_with_the_hashes_of_the_chain(
    journald: Journald, tmp_path: Path
) -> None:
    journald.start()
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 6)
        journal.checkpoint()
        journal.commit()
        forward(journald, directory, journal)
        head = journal.head
    entries = journald.entries(8)
    records = list(read(directory))
    assert [int(entry["SAFECLAW_SEQ"]) for entry in entries] == [r.seq for r in records]
    assert [entry["SAFECLAW_PREV_HASH"] for entry in entries] == [r.prev for r in records]
    assert entries[-1]["SAFECLAW_ENTRY_HASH"] == head[1]
    assert "safeclaw/" in entries[-1]["SAFECLAW_NOTE"]
    denied = entries[2]
    assert denied["SAFECLAW_TARGET"] == "/secrets/1"
    assert denied["SAFECLAW_REASON"] == "two\nlines"
    assert denied["SAFECLAW_POLICY_SHA256"] == "ab" * 32
    assert str(denied["MESSAGE_ID"]).replace("-", "") == message_id(RecordType.DECISION)
    review = journald.journalctl("-t", "safeclaw", "SAFECLAW_DECISION=deny")
    assert review.count("deny file.read /secrets/") == 3
    assert "/secrets/0" not in review


def test_an_absent_journald_is_reported_and_later_gets_everything(
    journald: Journald, tmp_path: Path
) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 3)
        forwarder = Forwarder(directory, journal.chain_id, journald.socket)
        assert forwarder.pump(journal.durable) == 4
        assert forwarder.problem is not None
        journald.start()
        assert forwarder.pump(journal.durable) == 0
        journald.entries(4)
        journald.stop()
        fill(journal, 2)
        assert forwarder.pump(journal.durable) == 2
        assert forwarder.problem is not None
        forwarder.close()
        journald.start()
        forwarder = Forwarder(directory, journal.chain_id, journald.socket)
        assert forwarder.next_seq == 4
        assert forwarder.pump(journal.durable) == 0
        forwarder.close()
    assert [int(entry["SAFECLAW_SEQ"]) for entry in journald.entries(6)] == list(range(6))


def test_a_journald_that_does_not_read_never_blocks_and_loses_nothing(
    journald: Journald, tmp_path: Path
) -> None:
    journald.start()
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 3000)
        forwarder = Forwarder(directory, journal.chain_id, journald.socket)
        journald.signal(signal.SIGSTOP)
        left = forwarder.pump(journal.durable)
        assert left > 0
        assert forwarder.problem is None
        journald.signal(signal.SIGCONT)
        writable = select.poll()
        writable.register(forwarder, select.POLLOUT)
        while forwarder.pump(journal.durable):
            assert writable.poll(30_000)
        durable = journal.durable
        forwarder.close()
    entries = journald.entries(durable + 1)
    assert [int(entry["SAFECLAW_SEQ"]) for entry in entries] == list(range(durable + 1))


def test_a_record_too_large_for_a_datagram_arrives(journald: Journald, tmp_path: Path) -> None:
    journald.start()
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        argv = ["run", *(["x" * 1000] * 700)]
        journal.append(
            Entry(type=RecordType.DECISION, target={"program": "/bin/run", "argv": argv})
        )
        journal.commit()
        forward(journald, directory, journal)
    assert len(journald.entries(2)[1]["SAFECLAW_TARGET"]) > 700_000


def test_a_chain_rewritten_or_cut_with_its_key_is_found_by_journald(
    journald: Journald, tmp_path: Path
) -> None:
    journald.start()
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 4)
        forward(journald, directory, journal)
    journald.entries(5)
    report = verify(directory, heard=lambda: journald_entries(directory, journald.files))
    assert report.headline == "intact"
    assert [str(anchor) for anchor in report.anchors] == ["journald: 5 records with the same hash"]
    # The owner cuts the tail and signs a new end with the real key.
    path = directory / files.segment_name(1)
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:3]))
    (directory / files.CHECKPOINT).unlink()
    with Journal.open(directory) as journal:
        journal.checkpoint()
    assert verify(directory).headline == "internally consistent"
    report = verify(directory, heard=lambda: journald_entries(directory, journald.files))
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    assert report.finding.seq == 3


def test_what_others_send_to_journald_is_not_believed(journald: Journald, tmp_path: Path) -> None:
    journald.start()
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 4)
        forward(journald, directory, journal)
        fields = {
            "MESSAGE": "forged",
            "SYSLOG_IDENTIFIER": "safeclaw",
            "SAFECLAW_CHAIN_ID": journal.chain_id,
            "SAFECLAW_SEQ": "2",
            "SAFECLAW_ENTRY_HASH": "00" * 32,
        }
    text = "".join(f"{name}={value}\n" for name, value in fields.items())
    enter = ["nsenter", f"--mount={journald.namespace}", "--"]

    def send(uid: int) -> None:
        who = ["setpriv", f"--reuid={uid}", "--clear-groups"]
        command = [*enter, *who, "logger", "--journald"]
        subprocess.run(command, input=text, check=True, text=True, cwd="/")

    send(65534)
    assert len(journald.entries(6)) == 6  # the forgery is there
    report = verify(directory, heard=lambda: journald_entries(directory, journald.files))
    assert report.headline == "intact", report.finding
    assert [str(anchor) for anchor in report.anchors] == ["journald: 5 records with the same hash"]


def test_what_journald_lost_is_said(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 9)
    leaves = [
        (number, leaf_hash(line).hex())
        for number, line in enumerate(
            (directory / files.segment_name(1)).read_bytes().split(b"\n")[:-1]
        )
    ]
    # A forwarder that was killed says some things twice; that hides no loss.
    heard = [*leaves[2:4], *leaves[6:8], *leaves[6:8], leaves[9]]
    report = verify(directory, heard=lambda: heard)
    assert report.headline == "intact"
    assert [str(anchor) for anchor in report.anchors] == ["journald: 5 records with the same hash"]
    assert report.notes == [
        "journald has nothing before record 2, or forgot it",
        "journald lost 3 records between those that it has: 4 to 5, 8",
        f"journald has nothing after record 9: {len(leaves) - 10} records are not there yet, "
        "or were lost",
    ]
    assert verify(directory, heard=lambda: leaves).notes == []
    assert verify(directory, heard=list).notes == ["journald has no record of this chain"]


def test_of_many_losses_the_first_are_named_and_all_are_counted() -> None:
    copied = Copied((number, "leaf") for number in range(0, 40, 2))
    assert all(copied.agrees(number, "leaf") for number in range(39))
    assert copied.notes(0) == [
        "journald lost 19 records between those that it has: 1, 3, 5, 7, 9, 11, 13, 15, "
        "and 11 further on"
    ]


def test_a_record_that_was_changed_is_said_and_not_forwarded(tmp_path: Path) -> None:
    directory = tmp_path / "journal"
    with Journal.open(directory) as journal:
        fill(journal, 1)
        durable = journal.durable
    path = directory / files.segment_name(1)
    path.write_bytes(path.read_bytes().replace(b'"v":1', b'"v":2'))
    forwarder = Forwarder(directory, journal.chain_id, tmp_path / "socket")
    assert forwarder.pump(durable) == durable + 1
    assert forwarder.problem is not None
    assert "record 0" in forwarder.problem
    forwarder.close()
