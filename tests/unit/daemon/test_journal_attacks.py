"""Every row of the threat model's journal table, mounted on a real chain.

An attack that the files alone cannot show is mounted too: there the files verify
(the attack works), and the anchor that is named finds it.
"""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, SigningKey
from safeclaw.daemon.journal.record import Record, RecordType, decode, encode
from safeclaw.daemon.journal.recovery import Head
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from tests.chain_attacks import ANCHORED, FOUND, Chain
from tests.journals import DAY, Host, decision
from tests.standalone import standalone


@pytest.fixture
def chain(tmp_path: Path) -> Chain:
    chain = Chain(tmp_path)
    report = verify(chain.directory, public_key=chain.ring, checkpoints=[chain.kept])
    assert (report.status, report.headline) == (Status.INTACT, "intact"), report.finding
    return chain


@pytest.mark.parametrize("name", FOUND)
def test_the_files_alone_show(chain: Chain, name: str) -> None:
    attack, seq, reason = FOUND[name]
    attack(chain)
    report = verify(chain.directory)
    assert standalone(chain.directory) == report.exit_status
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    if seq is not None:
        assert report.finding.seq == seq, report.finding
        assert report.finding.segment.startswith("segment-")
        assert report.finding.line > 0
    assert re.search(reason, report.finding.what), report.finding


@pytest.mark.parametrize("name", ANCHORED)
def test_an_anchor_shows(chain: Chain, tmp_path: Path, name: str) -> None:
    attack, anchor = ANCHORED[name]
    attack(chain)
    alone = verify(chain.directory)
    assert alone.status is Status.INTACT, alone.finding
    assert alone.headline == "internally consistent"
    assert standalone(chain.directory) == 0
    if anchor == "checkpoint":
        report = verify(chain.directory, checkpoints=[chain.kept])
        kept = tmp_path / "kept"
        kept.write_text(chain.kept[1])
        assert standalone(chain.directory, checkpoint=kept) == 1
    else:
        report = verify(chain.directory, public_key=chain.ring)
        assert standalone(chain.directory, public_key=chain.keys / files.PUBLIC_KEY) == 1
    assert report.status is Status.TAMPERED
    assert report.finding is not None


def test_a_prune_record_that_breaks_its_own_word_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even signed with the right key."""
    host = Host(monkeypatch)
    directory = tmp_path / "journal"
    with host.open(directory) as journal:
        for day in range(8):
            journal.append(decision(day))
            host.passes(DAY)
        journal.commit()
        assert journal.prune(2, override=True) > 1
    key = files.load_key(tmp_path / "keys")
    assert verify(directory).status is Status.INTACT
    content = {path: path.read_bytes() for _, path in files.segments(directory)}
    changes: list[tuple[dict[str, object], str]] = [
        ({"override": False}, "without an override"),
        ({"retention_days": 95}, "not 95 days old"),
        ({"through": files.segment_name(1)}, "no prune record says why"),
        ({"through": files.segment_name(99)}, "does not state the chain"),
        ({"root": base64.b64encode(bytes(32)).decode()}, "does not state the chain"),
        ({"size": "many"}, "a field is missing"),
    ]
    for change, reason in changes:
        for path, lines in content.items():
            path.write_bytes(lines)

        def edit(record: Record, change: dict[str, object] = change) -> list[Record]:
            if record.type is not RecordType.PRUNE:
                return [record]
            return [msgspec.structs.replace(record, detail={**(record.detail or {}), **change})]

        forge_pruned(directory, edit, key)
        report = verify(directory)
        assert report.status is Status.TAMPERED, change
        assert standalone(directory) == 1, change
        assert report.finding is not None
        assert reason in report.finding.what, (change, report.finding)


def forge_pruned(directory: Path, edit: Callable[[Record], list[Record]], key: SigningKey) -> None:
    """Forge the last segment only: the others, and where it begins, stay as they are."""
    found = files.segments(directory)
    head = Head(segment=found[0][0])
    for number, path in found[:-1]:
        head.segment = number
        for line in path.read_bytes().splitlines():
            head.accept(line)
    frontier, prev, seq = head.frontier, head.prev, head.seq
    origin = f"safeclaw/{head.chain}"
    out: list[bytes] = []
    for line in found[-1][1].read_bytes().splitlines():
        for record in edit(decode(line)):
            detail = record.detail
            if record.type is RecordType.CHECKPOINT:
                root = base64.b64encode(frontier.root()).decode()
                note = key.sign(Checkpoint(origin, seq, frontier.root()).text())
                detail = {"note": note, "root": root, "size": seq}
            new = encode(msgspec.structs.replace(record, detail=detail, prev=prev, seq=seq))
            leaf = leaf_hash(new)
            frontier.append(leaf)
            prev, seq = leaf.hex(), seq + 1
            out.append(new + b"\n")
    found[-1][1].write_bytes(b"".join(out))
    note = key.sign(Checkpoint(origin, seq, frontier.root()).text())
    (directory / files.CHECKPOINT).write_text(note)
