"""Which records are meant: a query, and one pass over the chain that answers it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from safeclaw.daemon.evidence.period import Period, stamp
from safeclaw.daemon.evidence.proofs import Prover
from safeclaw.daemon.journal import files, note, reader
from safeclaw.daemon.journal.filter import EVERY, Filter
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.record import Record, RecordError, decode
from safeclaw.daemon.journal.recovery import opening_frontier
from safeclaw.errors import JournalError


@dataclass(frozen=True)
class Query:
    """What was asked for."""

    period: Period = field(default_factory=Period)
    filter: Filter = EVERY

    def matches(self, record: Record) -> bool:
        """Whether a record is meant."""
        since, until = self._between
        return (
            (since is None or record.ts >= since)
            and (until is None or record.ts < until)
            and self.filter.passes(record)
        )

    @cached_property
    def _between(self) -> tuple[str | None, str | None]:
        """The period as records write times: there may be millions to compare."""
        since, until = self.period.since, self.period.until
        return stamp(since) if since else None, stamp(until) if until else None

    def fields(self) -> dict[str, str]:
        """Return the query as it is written into a manifest."""
        values = zip(("since", "until"), self._between, strict=True)
        given = {key: value for key, value in values if value is not None}
        return {**given, **self.filter.fields()}


@dataclass(frozen=True)
class Found:
    """A record that is meant, with its line as it stands in the chain."""

    record: Record
    line: bytes

    @property
    def leaf(self) -> bytes:
        """The record's leaf."""
        return leaf_hash(self.line)


@dataclass(frozen=True)
class Proof:
    """That a record stands in the tree of the signed checkpoint."""

    seq: int
    leaf: bytes
    path: tuple[bytes, ...]


class Pass:
    """One pass over a chain: what matches, how much there is, and proofs for what is wanted."""

    def __init__(self, directory: Path, query: Query, *, signed: str | None = None) -> None:
        """Read the latest checkpoint, else take ``signed``; :meth:`found` reads the chain."""
        self._directory = directory
        self._query = query
        self.total = self.count = 0
        self.first_seq: int | None = None
        self.last_seq: int | None = None
        #: The last match that the checkpoint covers.
        self.last_covered: int | None = None
        self.chain = ""
        self.note = ""
        self.size = 0
        self._root = b""
        self._prover: Prover | None = None
        self._wanted: dict[int, bytes] = {}
        try:
            if signed is None:
                signed = (directory / files.CHECKPOINT).read_bytes().decode()
            self.note = signed
            checkpoint = note.parse_checkpoint(self.note.partition("\n\n")[0] + "\n")
        except (OSError, UnicodeDecodeError, note.NoteError):
            self.note = ""  # no proofs then; verify says what that means
        else:
            self.size, self._root = checkpoint.size, checkpoint.root

    def found(self, *, prove: int = 0) -> Iterator[Found]:
        """Yield what matches, oldest first; ``prove`` asks for proofs of the first so many.

        Raises:
            JournalError: there is no journal, or a line of it is no record.
        """
        for path, number, line in reader.lines(self._directory):
            record = self._decoded(path, number, line)
            self.total += 1
            matches = self._query.matches(record)
            if prove:
                self._prove(record.seq, line, want=matches and self.count < prove)
            if matches:
                self.count += 1
                self.first_seq = record.seq if self.first_seq is None else self.first_seq
                self.last_seq = record.seq
                if record.seq < self.size:
                    self.last_covered = record.seq
                yield Found(record, line)

    def proved(self, wanted: set[int]) -> list[Proof]:
        """Return proofs of the records with these sequence numbers, in a pass for that alone.

        Raises:
            JournalError: as :meth:`found` and :meth:`proofs`.
        """
        seq = 0
        for path, number, line in reader.lines(self._directory):
            if self._prover is None:
                seq = self._decoded(path, number, line).seq
            # what no record is leads to another root
            self._prove(seq, line, want=seq in wanted)
            seq += 1
        return self.proofs()

    def _decoded(self, path: Path, number: int, line: bytes) -> Record:
        """Return a line's record; the first one says of which chain, and where in it."""
        try:
            record = decode(line)
            if self._prover is None:
                self.chain = record.chain
                nodes = opening_frontier(record).nodes if record.seq else []
                self._prover = Prover(record.seq, nodes)
        except RecordError as error:
            raise JournalError(
                f"{path}:{number}: {error.message}", hint="run: safeclaw audit verify"
            ) from error
        return record

    def _prove(self, seq: int, line: bytes, *, want: bool) -> None:
        prover = self._prover
        if prover is None or not self.note or prover.size >= self.size:
            return
        leaf = leaf_hash(line)
        prover.append(leaf, wanted=want)
        if want:
            self._wanted[seq] = leaf

    def proofs(self) -> list[Proof]:
        """Return the proofs that were asked for of :meth:`found`, once it is exhausted.

        Records after the latest checkpoint have none.

        Raises:
            JournalError: the chain is not the one its checkpoint signs.
        """
        if self._prover is None or not self._wanted:
            return []
        root, paths = self._prover.finish()
        if self._prover.size != self.size or root != self._root:
            raise JournalError(
                f"{self._directory}: the chain is not what its checkpoint says",
                hint="run: safeclaw audit verify",
            )
        return [Proof(seq, leaf, tuple(paths[seq])) for seq, leaf in self._wanted.items()]
