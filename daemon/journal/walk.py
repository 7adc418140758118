"""The rules of trust, held against one record after the other.  No files, no clocks.

The rules, in the order in which a record meets them:

1. Every line is a record in canonical form.
2. The first record is the only genesis, with sequence 0, and names the key; where
   the first segments were pruned, it is a ``rotate`` that states the tree so far.
3. Sequence numbers count up by one; ``prev`` is the leaf of the record before.
4. All records carry the chain's id.
5. Each later segment opens with ``rotate``, which names what it continues, the tree
   there and the key in force; there is no other ``rotate``.
6. Every checkpoint record states the size and root at its place, signed by the key
   in force; a ``key_change`` carries a certificate for the next key, signed by both.
7. Within one boot, the wall clock keeps step with the boot clock, unless a
   ``clock_step`` says otherwise; the boot clock never goes back.
8. Every checkpoint claimed from outside states the root of the chain at its size.
9. A ``prune`` record keeps to the retention it names, and states the tree at its place.
10. What journald got from the writer is in the chain, with the same hash.
"""

from __future__ import annotations

import base64
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

import msgspec

from safeclaw.daemon.journal import files, retention
from safeclaw.daemon.journal.clocks import ClockError, Clocks
from safeclaw.daemon.journal.copied import Copied
from safeclaw.daemon.journal.merkle import Frontier
from safeclaw.daemon.journal.note import (
    Checkpoint,
    NoteError,
    PublicKey,
    open_checkpoint,
    parse_checkpoint,
)
from safeclaw.daemon.journal.record import NO_PREV, Record, RecordError, RecordType, decode
from safeclaw.daemon.journal.recovery import opening_frontier
from safeclaw.daemon.journal.report import Finding, Report, Status
from safeclaw.daemon.journal.statements import (
    Before,
    StatementError,
    check_checkpoint,
    check_rotate,
    genesis,
    named_key,
    next_key,
)

_DECISION: Final = RecordType.DECISION


class StopError(Exception):
    """Ends the walk: the report says why."""


@dataclass(frozen=True)
class Claim:
    """A root that the chain must have at a size; ``source`` says who claims it."""

    source: str
    note: str
    checkpoint: Checkpoint


@dataclass(frozen=True)
class Pruned:
    """What a prune record says is gone: segments up to ``through``, the tree there."""

    seq: int
    through: int
    size: int
    root: str


class State(msgspec.Struct, frozen=True):
    """What the next record is held against, but for claims from outside and what was pruned."""

    chain: str
    records: int
    prev: str
    nodes: list[bytes]
    key: PublicKey
    clocks: tuple[str, int, int]


class Walk:
    """One pass over a chain; the caller sets ``segment`` and ``line`` as it goes."""

    def __init__(
        self,
        given: list[PublicKey],
        copied: Copied | None,
    ) -> None:
        self.report = Report()
        self.copied = copied  # by journald
        self.given = given
        self.ring: list[PublicKey] = []  # as certified by the keyring beside the chain
        self.keys: list[PublicKey] = []  # of the epochs, as the chain shows them
        self.whole_ring = False  # whether ``keys`` begins with the genesis key
        self.claims: list[Claim] = []
        self.frontier = Frontier()
        self.prev = NO_PREV
        self.number = 0  # of the segment
        self.segment = ""
        self.line = 0
        self.clocks = Clocks()
        #: Where each segment that was walked begins: (size, root in base64).
        self.boundaries: dict[int, tuple[int, str]] = {}
        self.pruned: Pruned | None = None

    def stop(
        self,
        what: str,
        status: Status = Status.TAMPERED,
        *,
        segment: str | None = None,
        line: int | None = None,
        seq: int | None = None,
    ) -> StopError:
        """Put a finding into the report; return what to raise."""
        self.report.status = status
        self.report.finding = Finding(
            self.segment if segment is None else segment,
            self.line if line is None else line,
            seq,
            what,
        )
        return StopError()

    def state(self) -> State:
        """Return where the walk is, after at least one record."""
        return State(
            chain=self.report.chain,
            records=self.report.records,
            prev=self.prev,
            nodes=list(self.frontier.nodes),
            key=self.keys[-1],
            clocks=self.clocks.state,
        )

    def resume(self, state: State) -> None:
        """Go on from where another walk of the same chain, under the same key, had got."""
        self.report.records = state.records
        self.prev = state.prev
        self.frontier = Frontier(state.records, state.nodes)
        self.clocks.resume(state.clocks)

    @property
    def plain(self) -> bool:
        """Whether nothing was met that rests on, or changes, more than :class:`State`."""
        return len(self.keys) == 1 and self.pruned is None

    def accept(self, line: bytes, *, opens: bool) -> None:
        """Hold the next line (without its newline) against the rules."""
        report = self.report
        seq = report.records
        try:
            record = decode(line)
        except RecordError as error:
            raise self.stop(error.message, seq=seq) from error
        if not self.keys:
            self._begin(record)
            seq = report.records
        if record.prev != self.prev or record.seq != seq or record.chain != report.chain:
            raise self._misplaced(record, seq)
        # Nearly all records are decisions, and those carry no rule of their own.
        if opens or record.type is not _DECISION:
            try:
                self._ruled(record, opens=opens)
            except StatementError as error:
                raise self.stop(str(error), seq=seq) from error
        # Those that were appended together were at the same time.
        if (
            record.ts != report.last_ts
            or record.boottime_us != self.clocks.boottime
            or record.boot_id != self.clocks.boot
        ):
            self._clock(record)
        leaf = sha256(b"\x00" + line).digest()  # merkle.leaf_hash
        self.prev = leaf.hex()
        self.frontier.append(leaf)
        report.records = seq + 1
        report.last_ts = record.ts
        if self.copied is not None and not self.copied.agrees(seq, self.prev):
            raise self.stop("journald holds another record of this number", seq=seq)
        if self.claims and self.claims[0].checkpoint.size <= seq + 1:
            self.settle()

    def _misplaced(self, record: Record, seq: int) -> StopError:
        """Say what is wrong with a record's place."""
        if record.seq != seq:
            return self.stop(f"the record says {record.seq}, {seq} is due here", seq=seq)
        if record.prev != self.prev:
            return self.stop(
                "prev is not the hash of the record before: one of the two was changed", seq=seq
            )
        return self.stop("a record of another chain", seq=seq)

    def _ruled(self, record: Record, *, opens: bool) -> None:
        """Hold a record against the rules of its type and place.  StatementError."""
        seq = record.seq
        if opens and seq > 0:
            check_rotate(record, self._before(), files.segment_name(self.number - 1))
            self.boundaries[self.number] = (seq, base64.b64encode(self.frontier.root()).decode())
            return
        match record.type:
            case RecordType.ROTATE:
                raise StatementError("rotate in the middle of a segment")
            case RecordType.CHECKPOINT:
                check_checkpoint(record, self._before())
                self.report.checkpoints += 1
                self.report.signed = max(self.report.signed, seq)
            case RecordType.GENESIS if seq > 0:
                raise StatementError("a second genesis")
            case RecordType.KEY_CHANGE:
                self._enter(next_key(record, self._before()))
                self.report.signed = max(self.report.signed, seq)
            case RecordType.PRUNE:
                self._prune(record)
            case _:
                pass

    def _before(self) -> Before:
        return Before(self.keys[0].name, self.frontier, self.keys[-1])

    # ---- claims from outside

    def claim(self, source: str, note: str) -> int | None:
        """Take a signed note as something the chain must agree with; return its size.

        None when what it covers was pruned.
        """
        text = note.partition("\n\n")[0] + "\n"
        try:
            checkpoint = parse_checkpoint(text)
        except NoteError as error:
            raise self.stop(error.message, segment=source, line=0) from error
        if checkpoint.origin != self.keys[0].name:
            raise self.stop("a checkpoint of another chain", segment=source, line=0)
        if checkpoint.size < self.report.pruned:
            self.report.notes.append(
                f"{source} covers only records that were pruned: it was not compared"
            )
            return None
        self.claims.append(Claim(source, note, checkpoint))
        self.claims.sort(key=lambda claim: claim.checkpoint.size)
        return checkpoint.size

    def settle(self) -> None:
        """Hold the chain, at its present size, against who claims to know its root."""
        while self.claims and self.claims[0].checkpoint.size <= self.report.records:
            claim = self.claims.pop(0)
            self.check_signature(claim)
            if claim.checkpoint.root != self.frontier.root():
                raise self.stop(
                    f"the records up to here are not those that {claim.source} "
                    f"(size {claim.checkpoint.size}) was signed for",
                    seq=self.report.records - 1,
                )
            self.report.signed = max(self.report.signed, claim.checkpoint.size)

    def check_signature(self, claim: Claim) -> None:
        """Check that the key in force here signed the claim."""
        try:
            open_checkpoint(claim.note, self.keys[-1])
        except NoteError as error:
            raise self.stop(error.message, segment=claim.source, line=0) from error

    # ---- where a chain begins

    def _begin(self, record: Record) -> None:
        """Take the first record that is there."""
        try:
            if self.number > 1:
                self._opening(record)
            else:
                self._genesis(record)
        except StatementError as error:
            seq = record.seq if self.number > 1 else 0
            raise self.stop(str(error), seq=seq) from error

    def _genesis(self, record: Record) -> None:
        key = genesis(record)
        self.report.chain = record.chain
        self.report.first_ts = record.ts
        self.whole_ring = True
        self._enter(key)

    def _opening(self, record: Record) -> None:
        """Begin with the ``rotate`` record of the first segment that is left."""
        try:
            self.frontier = opening_frontier(record)
        except RecordError as error:
            raise StatementError(error.message) from error
        self.report.chain = record.chain
        self.report.first_ts = record.ts
        self.report.records = self.report.pruned = record.seq
        self.prev = record.prev
        key = named_key((record.detail or {}).get("key"), record, "rotate")
        if key in self.ring:
            self.whole_ring = True
            for known in self.ring[: self.ring.index(key)]:
                self._enter(known)
        elif not self.ring and self.given[:1] == [key]:
            self.whole_ring = True
        elif self.ring:
            raise StatementError("the keyring does not lead to the key in force")
        self._enter(key)

    def _enter(self, key: PublicKey) -> None:
        """Begin the epoch of a key, which must be the one given for it, if one was."""
        epoch = len(self.keys)
        self.keys.append(key)
        if self.whole_ring and epoch < len(self.given) and self.given[epoch] != key:
            raise StatementError("the chain's key is not the public key given")

    # ---- records that carry a rule

    def _prune(self, record: Record) -> None:
        detail, seq = record.detail or {}, record.seq
        match detail:
            case {
                "through": str(name),
                "size": int(size),
                "root": str(root),
                "retention_days": int(days),
                "override": bool(override),
                "newest": str(newest),
            }:
                through = files.segment_number(name)
            case _:
                raise self.stop("prune: a field is missing", seq=seq)
        if not through:
            raise self.stop("prune: it names no segment", seq=seq)
        if days < retention.RETENTION_LEAST and not override:
            raise self.stop(f"prune: {days} days of retention without an override", seq=seq)
        try:
            kept = (retention.moment(record.ts) - retention.moment(newest)).total_seconds()
        except ValueError as error:
            raise self.stop("prune: a time that is none", seq=seq) from error
        # The writer's two looks at the clock may be a moment apart.
        if kept < days * 86_400 - 1:
            raise self.stop(f"prune: records were not {days} days old", seq=seq)
        boundary = self.boundaries.get(through + 1)
        if through >= self.number or (boundary is not None and boundary != (size, root)):
            raise self.stop("prune: it does not state the chain at its place", seq=seq)
        self.pruned = Pruned(seq, through, size, root)

    def _clock(self, record: Record) -> None:
        try:
            note = self.clocks.follow(record)
        except ClockError as error:
            raise self.stop(str(error), seq=record.seq) from error
        if note:
            self.report.notes.append(note)

    # ---- the end

    def finish(self) -> None:
        """Hold the whole chain against the rules that only its end can settle."""
        report = self.report
        first = min(self.boundaries, default=1)
        if report.pruned:
            self._settle_pruning(first)
        if self.given and not self.whole_ring and self.given[0] != self.keys[0]:
            raise self.stop(
                "the genesis was pruned, and no keyring leads from the public key given to "
                "the key in force",
                Status.INCOMPLETE,
                segment="keyring",
                line=0,
            )
        if self.whole_ring and len(self.given) > len(self.keys):
            raise self.stop(
                f"the public keys given are of {len(self.given)} epochs, the chain has "
                f"{len(self.keys)}: an older copy",
                seq=report.records,
            )
        report.epochs = len(self.keys)
        report.last_key = self.keys[-1].text()

    def _settle_pruning(self, first: int) -> None:
        pruned = self.pruned
        missing = files.segment_name(first - 1)
        if pruned is None or pruned.through < first - 1:
            raise self.stop(
                "the segment is missing, and no prune record says why",
                segment=missing,
                line=0,
                seq=self.report.pruned - 1,
            )
        if pruned.seq >= self.report.signed:
            raise self.stop("prune: no checkpoint covers it", seq=pruned.seq)
