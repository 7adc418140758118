"""Which records are meant: a query, and one pass over the chain that answers it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
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
        period = self.period
        return (
            (period.since is None or record.ts >= stamp(period.since))
            and (period.until is None or record.ts < stamp(period.until))
            and self.filter.passes(record)
        )

    def fields(self) -> dict[str, str]:
        """Return the query as it is written into a manifest."""
        period = self.period
        values = {
            "since": stamp(period.since) if period.since else None,
            "until": stamp(period.until) if period.until else None,
        }
        given = {key: value for key, value in values.items() if value is not None}
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

    def found(self, wanted: set[int] | None = None, *, prove: int = 0) -> Iterator[Found]:
        """Yield what matches, oldest first.

        ``prove`` asks for proofs of the first so many matches; ``wanted`` names
        sequence numbers to prove besides.

        Raises:
            JournalError: there is no journal, or a line of it is no record.
        """
        for path, number, line in reader.lines(self._directory):
            try:
                record = decode(line)
                if self._prover is None:
                    self._begin(record)
            except RecordError as error:
                raise JournalError(
                    f"{path}:{number}: {error.message}", hint="run: safeclaw audit verify"
                ) from error
            self.total += 1
            matches = self._query.matches(record)
            want = (wanted is not None and record.seq in wanted) or (matches and self.count < prove)
            self._prove(record.seq, line, want=want)
            if matches:
                self.count += 1
                self.first_seq = record.seq if self.first_seq is None else self.first_seq
                self.last_seq = record.seq
                if record.seq < self.size:
                    self.last_covered = record.seq
                yield Found(record, line)

    def _begin(self, record: Record) -> None:
        self.chain = record.chain
        nodes = opening_frontier(record).nodes if record.seq else []
        self._prover = Prover(record.seq, nodes)

    def _prove(self, seq: int, line: bytes, *, want: bool) -> None:
        prover = self._prover
        if prover is None or not self.note or prover.size >= self.size:
            return
        leaf = leaf_hash(line)
        prover.append(leaf, wanted=want)
        if want:
            self._wanted[seq] = leaf

    def proofs(self) -> list[Proof]:
        """Return the proofs that were asked for, after :meth:`found` is exhausted.

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
