"""Exports: the records that were asked for, in a format, and a manifest that vouches for them."""

from __future__ import annotations

import base64
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.evidence.formats import FORMATS
from safeclaw.daemon.evidence.proofs import included
from safeclaw.daemon.evidence.selection import Pass, Proof, Query
from safeclaw.daemon.journal import note
from safeclaw.errors import JournalError

#: Up to so many records each get a proof of their own; of more, the first and the last.
PROOFS: Final = 1000


class InclusionProof(msgspec.Struct, frozen=True):
    """A record's place in the signed tree; hashes in base64."""

    seq: int
    leaf: str
    path: list[str]


class Manifest(msgspec.Struct, frozen=True):
    """What an export is: of which chain, by which query, how much, and its hash."""

    format: str
    tool: str
    made: str
    chain: str
    query: dict[str, str]
    records: int
    left_out: int
    first_seq: int | None
    last_seq: int | None
    sha256: str | None
    checkpoint: str
    proofs: list[InclusionProof]
    proofs_of: str


def tool() -> str:
    """Return the name and version of this program."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        return f"safeclaw {version('safeclaw')}"
    except PackageNotFoundError:
        return "safeclaw"


def export(
    directory: Path,
    query: Query,
    format_name: str,
    write: Callable[[str], object],
    *,
    prove: int = PROOFS,
) -> Manifest:
    """Write the records that match with ``write``; return the manifest.

    In the ``json`` format the manifest ends the document, and its own hash is left out.

    Raises:
        JournalError: there is no journal, or a line of it is no record.
    """
    writer = FORMATS[format_name]()
    walked = Pass(directory, query)
    digest = sha256()

    def out(text: str) -> None:
        if text:
            digest.update(text.encode())
            write(text)

    out(writer.begin())
    for found in walked.found(prove=prove):
        out(writer.row(found))
    proofs = walked.proofs()
    whole = "each record" if walked.count == len(proofs) else f"the first {len(proofs)} records"
    last = walked.last_covered
    if last is not None and last not in {proof.seq for proof in proofs}:
        # A second pass, for the last one too; to the same tree, whatever was written meanwhile.
        proofs += Pass(directory, query, signed=walked.note).proved({last})
        whole += " and the last that the checkpoint covers"
    manifest = Manifest(
        format=format_name,
        tool=tool(),
        made=datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        chain=walked.chain,
        query=query.fields(),
        records=walked.count,
        left_out=walked.total - walked.count,
        first_seq=walked.first_seq,
        last_seq=walked.last_seq,
        sha256=None,
        checkpoint=walked.note,
        proofs=[as_field(proof) for proof in proofs],
        proofs_of=whole,
    )
    out(writer.end(msgspec.to_builtins(manifest)))
    if format_name == "json":
        return manifest
    return msgspec.structs.replace(manifest, sha256=digest.hexdigest())


def as_field(proof: Proof) -> InclusionProof:
    """Return a proof as manifests have it."""
    return InclusionProof(
        seq=proof.seq,
        leaf=base64.b64encode(proof.leaf).decode(),
        path=[base64.b64encode(step).decode() for step in proof.path],
    )


def holds(proof: InclusionProof, checkpoint: str, keys: list[note.PublicKey]) -> bool:
    """Whether a proof leads to the root of a checkpoint that one of ``keys`` signed.

    Raises:
        JournalError: none of them signed it.
    """
    for key in keys:
        try:
            signed = note.open_checkpoint(checkpoint, key)
        except note.NoteError:
            continue
        path = [base64.b64decode(step) for step in proof.path]
        leaf = base64.b64decode(proof.leaf)
        return included(leaf, proof.seq, signed.size, path, signed.root)
    raise JournalError(
        "the checkpoint is not signed by a key that is known",
        hint="safeclaw audit keys export writes the chain's keys, each epoch's",
    )
