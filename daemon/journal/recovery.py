"""What a writer finds when it opens a journal: the head, and a torn tail.

The writer trusts its own directory (finding tampering is ``verify``'s work) but
never builds on a chain that does not hold: a broken record behind the latest
checkpoint, or fewer records than it signed for, refuses the journal.  Bytes
after the last good record that no checkpoint covers are what a crash leaves:
they are set aside in a file of their own, and the chain records it.
"""

from __future__ import annotations

import base64
import contextlib
import os
from hashlib import sha256
from pathlib import Path

import msgspec

from safeclaw.daemon.journal import files, note
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.daemon.journal.record import (
    MAX_LINE,
    NO_PREV,
    Record,
    RecordError,
    RecordType,
    decode,
)
from safeclaw.errors import JournalError


class Unfinished(msgspec.Struct, frozen=True):
    """A session whose end is not in the chain: whose it is, and when it began."""

    session: str
    boot_id: str
    boottime_us: int
    agent: str | None = None
    uid: int | None = None
    supervisor: int | None = None  # its process


class FrontierFile(msgspec.Struct, frozen=True):
    """The cache beside the checkpoint: where record ``size`` begins, and the tree there."""

    chain: str
    size: int
    segment: int
    offset: int
    prev: str
    nodes: list[str]
    unfinished: list[Unfinished] = []


class Head(msgspec.Struct):
    """Where the chain ends, and how it got there."""

    chain: str = ""
    seq: int = 0  # of the next record
    prev: str = NO_PREV
    segment: int = 1
    offset: int = 0
    frontier: Frontier = msgspec.field(default_factory=Frontier)
    last: Record | None = None
    torn: bytes = b""
    torn_reason: str = ""
    unsigned: int = 0  # records after the latest checkpoint
    unfinished: dict[str, Unfinished] = msgspec.field(default_factory=dict[str, Unfinished])

    def accept(self, line: bytes) -> None:
        """Take the next line, or raise RecordError with what is wrong with it."""
        record = decode(line)
        if self.seq == 0 and self.segment > 1:
            self._begin_at(record)
        if self.seq and record.chain != self.chain:
            raise RecordError("a record of another chain")
        if record.seq != self.seq or record.prev != self.prev:
            raise RecordError("it does not follow the record before it")
        leaf = leaf_hash(line)
        self.chain = record.chain
        self.seq += 1
        self.prev = leaf.hex()
        self.frontier.append(leaf)
        self.offset += len(line) + 1
        self.last = record
        self.follow(record)

    def follow(self, record: Record) -> None:
        """Note a session's begin and end."""
        if record.type is RecordType.DECISION or record.session is None:
            return
        if record.type is RecordType.SESSION_END:
            self.unfinished.pop(record.session, None)
        elif record.type in (RecordType.POLICY_LOAD, RecordType.SESSION_START):
            known = self.unfinished.get(record.session)
            supervisor = (record.detail or {}).get("supervisor")
            if known is None or known.supervisor is None:
                self.unfinished[record.session] = Unfinished(
                    session=record.session,
                    boot_id=record.boot_id,
                    boottime_us=record.boottime_us,
                    agent=record.agent,
                    uid=record.subject.uid if record.subject is not None else None,
                    supervisor=supervisor if isinstance(supervisor, int) else None,
                )

    def _begin_at(self, record: Record) -> None:
        """Begin with the first segment that was not pruned; RecordError when it is no beginning."""
        self.frontier = opening_frontier(record)
        self.chain, self.seq, self.prev = record.chain, record.seq, record.prev


def opening_frontier(record: Record) -> Frontier:
    """Return the tree before the ``rotate`` record that opens a segment.

    Raises:
        RecordError: it is no ``rotate`` record, or does not fit itself.
    """
    detail = record.detail or {}
    if record.type is not RecordType.ROTATE:
        raise RecordError("a later segment opens with rotate")
    try:
        nodes = [bytes.fromhex(node) for node in str(detail.get("nodes")).split()]
        frontier = Frontier(record.seq, nodes)
    except ValueError as error:
        raise RecordError("the nodes of rotate are not those of a tree of its size") from error
    root = base64.b64encode(frontier.root()).decode()
    if any(len(node) != 32 for node in nodes) or detail.get("root") != root:
        raise RecordError("the nodes of rotate do not give its root")
    return frontier


def last_record(directory: Path, head: Head) -> Record | None:
    """Return the record before the head, from the end of its segment; None when unreadable.

    For the clock alone: whether it was set while no writer was there.
    """
    if head.last is not None:
        return head.last
    behind = head.offset == 0 and head.segment > 1
    path = directory / files.segment_name(head.segment - behind)
    with path.open("rb") as stream:
        end = os.fstat(stream.fileno()).st_size if behind else head.offset
        for length in (4096, MAX_LINE + 2):
            start = max(0, end - length)
            stream.seek(start)
            lines = stream.read(end - start).split(b"\n")
            if len(lines) > 2 or (start == 0 and len(lines) == 2):
                with contextlib.suppress(RecordError):
                    return decode(lines[-2])
    return None


def _signed(directory: Path) -> note.Checkpoint | None:
    """Return the latest checkpoint, unverified: the writer's own."""
    try:
        text = (directory / files.CHECKPOINT).read_text("utf-8", "replace")
    except FileNotFoundError:
        return None
    return note.parse_checkpoint(text.partition("\n\n")[0] + "\n")


def _cached(directory: Path, signed: note.Checkpoint | None) -> Head | None:
    """Return the head at the latest checkpoint, if the cache proves to be of it."""
    if signed is None:
        return None
    try:
        content = (directory / files.FRONTIER).read_bytes()
        cache = msgspec.json.decode(content, type=FrontierFile)
        frontier = Frontier(cache.size, [bytes.fromhex(node) for node in cache.nodes])
    except (OSError, ValueError, msgspec.MsgspecError):
        return None
    if cache.size != signed.size or frontier.root() != signed.root:
        return None
    return Head(
        chain=cache.chain,
        seq=cache.size,
        prev=cache.prev,
        segment=cache.segment,
        offset=cache.offset,
        frontier=frontier,
        unfinished={session.session: session for session in cache.unfinished},
    )


def find_head(directory: Path, found: list[tuple[int, Path]]) -> Head:
    """Return the head of the journal whose segments are ``found``.

    Raises:
        JournalError: the chain is damaged before its latest checkpoint, or cut.
    """
    try:
        signed = _signed(directory)
        # A cache from before a copy or a restore may name a segment that is not there.
        head = _cached(directory, signed)
        if head is None or head.segment < found[0][0]:
            head = Head(segment=found[0][0])
        covered = signed.size if signed else 0
        head.unsigned = -covered
        for number, path in found:
            if number < head.segment:
                continue
            if number != head.segment:
                head.segment, head.offset = number, 0
            _scan(path, head, covered, is_last=number == found[-1][0])
    except OSError as error:
        raise JournalError.of(error, directory) from error
    if found[-1][0] != head.segment:
        raise JournalError(
            f"{directory / files.segment_name(head.segment)}: the segment is missing",
            hint="run: safeclaw audit verify",
        )
    if head.seq == 0 and head.segment > 1:
        raise JournalError(f"{directory}: no whole record", hint="run: safeclaw audit verify")
    if head.seq < covered:
        raise JournalError(
            f"{directory}: the chain ends after {head.seq} records, "
            f"its checkpoint covers {covered}",
            hint="run: safeclaw audit verify",
        )
    head.unsigned += head.seq
    return head


def _scan(path: Path, head: Head, covered: int, *, is_last: bool) -> None:
    with path.open("rb") as stream:
        if os.fstat(stream.fileno()).st_size < head.offset:
            raise JournalError(f"{path}: shorter than it was", hint="run: safeclaw audit verify")
        stream.seek(head.offset)
        while line := stream.readline(MAX_LINE + 2):
            problem = ""
            if not line.endswith(b"\n"):
                problem = "the last line has no end"
            else:
                try:
                    head.accept(line[:-1])
                except RecordError as error:
                    problem = error.message
            if not problem:
                continue
            if head.seq < covered or not is_last:
                raise JournalError(
                    f"{path}: record {head.seq}: {problem}", hint="run: safeclaw audit verify"
                )
            head.torn = line + stream.read()
            head.torn_reason = problem
            return


def set_aside(directory: Path, head: Head) -> list[dict[str, object]]:
    """Move a torn tail into a file of its own; return what the chain is to say of such files.

    A start that a crash ended here has left its file, and no record of it; the head's number is
    still the one in the file's name.
    """
    if head.torn:
        digest = sha256(head.torn).hexdigest()
        files.replace(directory / f"torn-{head.seq}-{digest[:12]}", head.torn, mode=0o600)
        segment = directory / files.segment_name(head.segment)
        fd = files.open_segment(segment, create=False)
        try:
            files.sync_directory(directory)
            os.ftruncate(fd, head.offset)
            os.fsync(fd)
        finally:
            os.close(fd)
    found: list[dict[str, object]] = []
    for path in sorted(directory.glob(f"torn-{head.seq}-{'[0-9a-f]' * 12}")):
        torn = path.read_bytes()
        ours = torn == head.torn
        found.append(
            {
                "bytes": len(torn),
                "file": path.name,
                "reason": head.torn_reason if ours else "set aside by a start that did not end",
                "sha256": sha256(torn).hexdigest(),
            }
        )
    return found
