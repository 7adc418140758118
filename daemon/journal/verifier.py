"""Whether a journal is what was written: the rules of trust, and the verdict.

Needs nothing but the files and, for more than inner consistency, an anchor:
something kept where whoever could rewrite the files could not reach.  Streams;
memory does not grow with the chain.

The rules, in the order in which a record meets them:

1. Every line ends with a newline and is a record in canonical form.
2. The first record is the only genesis, with sequence 0, and names the key.
3. Sequence numbers count up by one; ``prev`` is the leaf of the record before.
4. All records carry the chain's id.
5. Segments count up from 1; each later one opens with ``rotate``, which names
   what it continues; there is no other ``rotate``.
6. Every checkpoint record states the size and root at its place, signed.
7. Within one boot, the wall clock keeps step with the boot clock, unless a
   ``clock_step`` says otherwise; the boot clock never goes back.
8. The ``checkpoint`` file and every checkpoint given state the root of the
   chain at their size: the chain may be longer, never shorter.
9. What journald got from the writer is in the chain, with the same hash.
"""

from __future__ import annotations

import base64
import contextlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, NoteError, PublicKey, open_checkpoint
from safeclaw.daemon.journal.record import (
    MAX_LINE,
    NO_PREV,
    Record,
    RecordError,
    RecordType,
    decode,
)
from safeclaw.daemon.journal.report import Finding, Report, Status
from safeclaw.errors import JournalError

#: Twice what the writer takes for a step, and what slewing may add.
STEP_US: Final = 2_000_000


class _Stop(Exception):
    """Ends the walk: the report says why."""


@dataclass(frozen=True)
class _Claim:
    """A root that the chain must have at a size; ``source`` says who claims it."""

    source: str
    checkpoint: Checkpoint


class _Walk:
    """One pass over the chain."""

    def __init__(self, public_key: PublicKey | None, witness: Iterator[tuple[int, str]]) -> None:
        self.report = Report()
        self.witness = witness
        self.witnessed = 0
        self.heard: tuple[int, str] | None = next(witness, None)
        self.key: PublicKey | None = public_key
        self.given = public_key
        self.claims: list[_Claim] = []
        self.frontier = Frontier()
        self.prev = NO_PREV
        self.segment = ""
        self.line = 0
        self.boot = ""
        self.boottime = 0
        self.offset = 0
        self.second = ""
        self.second_us = 0

    def stop(
        self,
        what: str,
        status: Status = Status.TAMPERED,
        *,
        segment: str | None = None,
        line: int | None = None,
        seq: int | None = None,
    ) -> _Stop:
        self.report.status = status
        self.report.finding = Finding(
            self.segment if segment is None else segment,
            self.line if line is None else line,
            seq,
            what,
        )
        return _Stop()

    def accept(self, line: bytes, *, opens: bool) -> None:
        """Hold the next line against rules 1 to 8."""
        seq = self.report.records
        try:
            record = decode(line)
        except RecordError as error:
            raise self.stop(error.message, seq=seq) from error
        if record.seq != seq:
            raise self.stop(f"the record says {record.seq}, {seq} is due here", seq=seq)
        if record.prev != self.prev:
            raise self.stop(
                "prev is not the hash of the record before: one of the two was changed", seq=seq
            )
        kind = record.type
        if seq == 0:
            self._genesis(record)
        elif record.chain != self.report.chain:
            raise self.stop("a record of another chain", seq=seq)
        elif kind is RecordType.GENESIS:
            raise self.stop("a second genesis", seq=seq)
        if (kind is RecordType.ROTATE) != (opens and seq > 0):
            raise self.stop("a later segment opens with rotate, and only there is one", seq=seq)
        if kind is RecordType.CHECKPOINT:
            self._checkpoint(record)
        elif kind is RecordType.ROTATE:
            self._rotate(record)
        self._clock(record)
        leaf = leaf_hash(line)
        self.prev = leaf.hex()
        self.frontier.append(leaf)
        self.report.records = seq + 1
        self.report.last_ts = record.ts
        if self.heard is not None:
            self._hear(self.prev)
        if self.claims:
            self.settle()

    def _hear(self, leaf: str) -> None:
        """Hold the record just taken against what journald has."""
        seq = self.report.records - 1
        while self.heard is not None and self.heard[0] <= seq:
            # Lower ones came twice, after a crash of the forwarder.
            if self.heard[0] == seq:
                if self.heard[1] != leaf:
                    raise self.stop("journald holds another record of this number", seq=seq)
                self.witnessed += 1
            self.heard = next(self.witness, None)

    def settle(self) -> None:
        """Hold the chain, at its present size, against who claims to know its root."""
        while self.claims and self.claims[0].checkpoint.size <= self.report.records:
            claim = self.claims.pop(0)
            if claim.checkpoint.root != self.frontier.root():
                raise self.stop(
                    f"the records up to here are not those that {claim.source} "
                    f"(size {claim.checkpoint.size}) was signed for",
                    seq=self.report.records - 1,
                )
            self.report.signed = max(self.report.signed, claim.checkpoint.size)

    def _genesis(self, record: Record) -> None:
        detail = record.detail or {}
        if record.type is not RecordType.GENESIS:
            raise self.stop("the first record is not the genesis", seq=0)
        try:
            key = PublicKey.parse(str(detail.get("public_key")))
        except NoteError as error:
            raise self.stop(f"the genesis names no usable key: {error.message}", seq=0) from error
        if key.name != f"safeclaw/{record.chain}" or detail.get("origin") != key.name:
            raise self.stop("the genesis names the key of another chain", seq=0)
        if self.given is not None and self.given != key:
            raise self.stop("the chain's key is not the public key given", seq=0)
        self.key = key
        self.report.chain = record.chain
        self.report.first_ts = record.ts

    def claim(self, source: str, note: str) -> None:
        """Take a signed note as something the chain must agree with."""
        assert self.key is not None
        try:
            checkpoint = open_checkpoint(note, self.key)
        except NoteError as error:
            raise self.stop(error.message, segment=source, line=0) from error
        if checkpoint.origin != self.key.name:
            raise self.stop("a checkpoint of another chain", segment=source, line=0)
        self.claims.append(_Claim(source, checkpoint))
        self.claims.sort(key=lambda claim: claim.checkpoint.size)

    def _checkpoint(self, record: Record) -> None:
        assert self.key is not None
        detail, seq = record.detail or {}, record.seq
        try:
            checkpoint = open_checkpoint(str(detail.get("note")), self.key)
        except NoteError as error:
            raise self.stop(f"checkpoint: {error.message}", seq=seq) from error
        root = self.frontier.root()
        if (checkpoint.origin, checkpoint.size, checkpoint.root) != (self.key.name, seq, root):
            raise self.stop("the checkpoint does not state the chain before it", seq=seq)
        if detail.get("size") != seq or detail.get("root") != base64.b64encode(root).decode():
            raise self.stop("the checkpoint's fields are not those it signs", seq=seq)
        self.report.checkpoints += 1
        self.report.signed = max(self.report.signed, seq)

    def _rotate(self, record: Record) -> None:
        expected = {
            "continues": files.segment_name(self.report.segments),
            "root": base64.b64encode(self.frontier.root()).decode(),
            "size": record.seq,
        }
        if record.detail != expected:
            raise self.stop("the segment does not continue the one before", seq=record.seq)

    def _clock(self, record: Record) -> None:
        second, micro = record.ts[:19], record.ts[19:]
        if second != self.second:
            try:
                wall = datetime.strptime(second, "%Y-%m-%dT%H:%M:%S")
            except ValueError as error:
                raise self.stop("ts is not a time", seq=record.seq) from error
            self.second = second
            self.second_us = (wall - _EPOCH) // _MICROSECOND
        if not _MICRO(micro):
            raise self.stop("ts is not a time", seq=record.seq)
        offset = self.second_us + int(micro[1:7]) - record.boottime_us
        if record.boot_id == self.boot and record.type is not RecordType.CLOCK_STEP:
            elapsed = record.boottime_us - self.boottime
            if elapsed < 0:
                raise self.stop("the boot clock goes back", seq=record.seq)
            if abs(offset - self.offset) > STEP_US + elapsed // 500:
                raise self.stop("ts does not keep step with the boot clock", seq=record.seq)
        self.boot, self.boottime, self.offset = record.boot_id, record.boottime_us, offset


_EPOCH = datetime(1970, 1, 1)
_MICRO = re.compile(r"\.[0-9]{6}Z").fullmatch
_MICROSECOND = datetime.resolution


def verify(
    directory: Path,
    *,
    public_key: PublicKey | None = None,
    checkpoints: Sequence[tuple[str, str]] = (),
    witness: Iterable[tuple[int, str]] | None = None,
) -> Report:
    """Return the verdict on the journal in ``directory``.

    ``witness`` is journald's word: (sequence, leaf in hex), in order.
    ``public_key`` and ``checkpoints`` (name and signed note) are anchors: they count
    only if they were kept where the journal's owner could not change them.
    """
    walk = _Walk(public_key, iter(witness or ()))
    with contextlib.suppress(_Stop):
        _walk(walk, directory, checkpoints)
        if walk.witnessed:
            walk.report.anchors.append(f"journald: {walk.witnessed} records with the same hash")
        elif witness is not None:
            walk.report.notes.append("journald has no record of this chain")
    return walk.report


def _walk(walk: _Walk, directory: Path, checkpoints: Sequence[tuple[str, str]]) -> None:
    report = walk.report
    # The order matters beside a live writer: first what it signed, then how far it got.
    latest: str | None = None
    try:
        live = files.is_locked(directory)
        path = directory / files.CHECKPOINT
        if path.exists():
            latest = path.read_text("utf-8")
        found = [(number, path, path.stat().st_size) for number, path in files.segments(directory)]
    except UnicodeDecodeError as error:
        raise walk.stop("not a signed note", segment=files.CHECKPOINT) from error
    except OSError as error:
        name = str(error.filename or directory)
        raise walk.stop(str(error.strerror), Status.INCOMPLETE, segment=name) from error
    if not found and latest is None:
        raise walk.stop("no journal here", Status.INCOMPLETE, segment=str(directory))
    torn = 0
    for position, (number, path, size) in enumerate(found, 1):
        walk.segment, walk.line = path.name, 0
        if number != position:
            missing = files.segment_name(position)
            raise walk.stop("the segment is missing", segment=missing, seq=report.records)
        if torn:
            raise walk.stop("the segment before ends in a torn line", seq=report.records)
        try:
            torn = _segment(walk, path, size, latest, checkpoints)
        except OSError as error:
            raise walk.stop(str(error.strerror), Status.INCOMPLETE, line=0) from error
        report.segments = position
    if walk.claims or (latest is not None and not report.records):
        size = walk.claims[-1].checkpoint.size if walk.claims else 0
        source = walk.claims[-1].source if walk.claims else files.CHECKPOINT
        raise walk.stop(
            f"the chain ends after {report.records} records, but {source} was signed for "
            f"{size or 'more'}: the tail was cut off",
            line=walk.line + bool(torn),
            seq=report.records,
        )
    if walk.heard is not None and not live:
        raise walk.stop(
            f"the chain ends after {report.records} records, but journald got record "
            f"{walk.heard[0]}: the tail was cut off",
            seq=report.records,
        )
    if torn and not live:
        raise walk.stop(
            f"a torn tail of {torn} bytes, as a crash leaves it; the next start sets it aside",
            Status.INCOMPLETE,
            line=walk.line + 1,
            seq=report.records,
        )
    if latest is None:
        if not live:
            raise walk.stop("the file is missing", Status.INCOMPLETE, segment=files.CHECKPOINT)
        report.notes.append("the writer has just begun and signed nothing yet")
    if live:
        report.notes.append("a writer is at work: what it wrote since is not in this verdict")


def _segment(
    walk: _Walk,
    path: Path,
    size: int,
    latest: str | None,
    checkpoints: Sequence[tuple[str, str]],
) -> int:
    """Walk one segment's first ``size`` bytes; return the bytes of a torn last line."""
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size < size:
            raise walk.stop("the segment shrank while it was read")
        while size > 0:
            line = stream.readline(min(size, MAX_LINE + 2))
            if not line.endswith(b"\n"):
                if len(line) > MAX_LINE:
                    walk.line += 1
                    raise walk.stop("the line is too long", seq=walk.report.records)
                return size
            size -= len(line)
            walk.line += 1
            walk.accept(line[:-1], opens=walk.line == 1)
            if walk.report.records == 1:
                _take_claims(walk, latest, checkpoints)
    return 0


def _take_claims(walk: _Walk, latest: str | None, checkpoints: Sequence[tuple[str, str]]) -> None:
    """Now that the genesis has named the key, open the notes that were signed with it."""
    if walk.given is not None:
        walk.report.anchors.append("public key")
    if latest is not None:
        walk.claim(files.CHECKPOINT, latest)
    for name, note in checkpoints:
        walk.claim(name, note)
        walk.report.anchors.append(f"checkpoint {name}")
    walk.settle()


def read_checkpoint(path: Path) -> tuple[str, str]:
    """Return a checkpoint file for :func:`verify`.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        return str(path), path.read_text("utf-8")
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise JournalError(f"{path}: not a signed note") from error
