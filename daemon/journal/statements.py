"""What a record may state of its chain, held against the chain before it.  No files, no clocks.

The genesis names the first key.  ``rotate`` states what its segment continues, a checkpoint and
a ``key_change`` the tree at their place, each signed by the key in force there.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass

from safeclaw.daemon.journal.keys import open_certificate
from safeclaw.daemon.journal.merkle import Frontier
from safeclaw.daemon.journal.note import Checkpoint, NoteError, PublicKey, open_checkpoint
from safeclaw.daemon.journal.record import Record, RecordType


class StatementError(Exception):
    """A record does not state what is so; the text says what is wrong."""


@dataclass(frozen=True)
class Before:
    """The chain before a record: the name it is signed under, its tree, the key in force."""

    origin: str
    tree: Frontier
    key: PublicKey

    @property
    def checkpoint(self) -> Checkpoint:
        """What is to be signed here."""
        return Checkpoint(self.origin, self.tree.size, self.tree.root())


def _fields(checkpoint: Checkpoint) -> dict[str, object]:
    """Return a size and a root as records have them."""
    return {"root": base64.b64encode(checkpoint.root).decode(), "size": checkpoint.size}


def genesis(record: Record) -> PublicKey:
    """Return the key that the first record of a chain names.

    Raises:
        StatementError: it is no genesis, or names no key of this chain.
    """
    detail = record.detail or {}
    if record.type is not RecordType.GENESIS:
        raise StatementError("the first record is not the genesis")
    key = named_key(detail.get("public_key"), record, "the genesis")
    if detail.get("origin") != key.name:
        raise StatementError("the genesis names the key of another chain")
    return key


def named_key(text: object, record: Record, where: str) -> PublicKey:
    """Return a key that a record names in its own words; StatementError where it is not usable."""
    try:
        key = PublicKey.parse(str(text))
    except NoteError as error:
        raise StatementError(f"{where} names no usable key: {error.message}") from error
    if key.name != f"safeclaw/{record.chain}":
        raise StatementError(f"{where} names the key of another chain")
    return key


def check_rotate(record: Record, before: Before, continues: str) -> None:
    """Check that a segment, which begins with this record, continues the one of that name.

    Raises:
        StatementError: it does not.
    """
    expected = _fields(before.checkpoint) | {
        "continues": continues,
        "key": before.key.text(),
        "nodes": " ".join(node.hex() for node in before.tree.nodes),
    }
    if record.type is not RecordType.ROTATE or record.detail != expected:
        raise StatementError("the segment does not continue the one before")


def check_checkpoint(record: Record, before: Before) -> None:
    """Check that a checkpoint record states the chain before it, signed.

    Raises:
        StatementError: it does not.
    """
    detail, here = record.detail or {}, before.checkpoint
    try:
        checkpoint = open_checkpoint(str(detail.get("note")), before.key)
    except NoteError as error:
        raise StatementError(f"checkpoint: {error.message}") from error
    if checkpoint != here:
        raise StatementError("the checkpoint does not state the chain before it")
    if any(detail.get(name) != value for name, value in _fields(here).items()):
        raise StatementError("the checkpoint's fields are not those it signs")


def next_key(record: Record, before: Before) -> PublicKey:
    """Return the key that is in force after a ``key_change``, certified by the one before.

    Raises:
        StatementError: the certificate does not hold, or is of another place.
    """
    detail, here = record.detail or {}, before.checkpoint
    try:
        certificate = open_certificate(str(detail.get("certificate")), before.key)
    except NoteError as error:
        raise StatementError(f"key_change: {error.message}") from error
    stated = _fields(here) | {
        "certificate": detail.get("certificate"),
        "public_key": certificate.key.text(),
    }
    if detail != stated or certificate.checkpoint != here:
        raise StatementError("the certificate does not state the chain before it")
    return certificate.key
