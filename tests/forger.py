"""What someone with write access to a journal can make of it, with or without its key."""

from __future__ import annotations

import base64
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, SigningKey
from safeclaw.daemon.journal.record import NO_PREV, Record, RecordType, decode, encode

#: Returns what is to stand in a record's place: itself, others, or nothing.
Edit = Callable[[Record], list[Record]]


def forge(directory: Path, edit: Edit, key: SigningKey | None) -> None:
    """Edit a chain, then make every number, link, root and (with a key) signature fit again."""
    frontier, prev, seq = Frontier(), NO_PREV, 0
    origin = ""
    for number, path in files.segments(directory):
        out: list[bytes] = []
        for line in path.read_bytes().splitlines():
            for record in edit(decode(line)):
                origin = f"safeclaw/{record.chain}"
                root = base64.b64encode(frontier.root()).decode()
                detail = dict(record.detail or {})
                if record.type is RecordType.ROTATE:
                    detail |= {
                        "continues": files.segment_name(number - 1),
                        "nodes": " ".join(node.hex() for node in frontier.nodes),
                        "root": root,
                        "size": seq,
                    }
                if record.type is RecordType.CHECKPOINT:
                    detail |= {"root": root, "size": seq}
                    if key is not None:
                        text = Checkpoint(origin, seq, frontier.root()).text()
                        detail["note"] = key.sign(text)
                record = msgspec.structs.replace(
                    record, detail=detail or record.detail, prev=prev, seq=seq
                )
                new = encode(record)
                leaf = leaf_hash(new)
                frontier.append(leaf)
                prev, seq = leaf.hex(), seq + 1
                out.append(new + b"\n")
        path.write_bytes(b"".join(out))
    if key is not None:
        note = key.sign(Checkpoint(origin, seq, frontier.root()).text())
        (directory / files.CHECKPOINT).write_text(note)


def same(record: Record) -> list[Record]:
    """Change nothing."""
    return [record]


def whitewash(at: int) -> Edit:
    """Return the edit that turns one record's denial into an allow."""

    def edit(record: Record) -> list[Record]:
        if record.seq != at:
            return [record]
        return [msgspec.structs.replace(record, decision="allow", rule="default:2")]

    return edit


def drop(at: int) -> Edit:
    """Return the edit that leaves one record out."""
    return lambda record: [] if record.seq == at else [record]
