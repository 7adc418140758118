"""The journal as the broker's loop uses it: appended to here, made durable in a thread of its own.

It lives as long as the broker, and belongs to its main thread.  The first write that fails is
the end of it: ``fault`` says why, and nothing is appended any more.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

import msgspec

from safeclaw.daemon.committer import PACE, Committer
from safeclaw.daemon.forwarding import Forwarding
from safeclaw.daemon.health import Standing, standing
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.record import Entry, Template
from safeclaw.daemon.journal.recovery import Unfinished
from safeclaw.daemon.pseudonyms import Veils
from safeclaw.daemon.sessions import Session
from safeclaw.errors import JournalError, JournalFaultError, SafeclawError


class Position(msgspec.Struct, frozen=True):
    """Where the journal stands: its chain, the last record, the last one on disk."""

    chain: str | None
    head: int
    durable: int


class Ledger:
    """See the module.  ``wake`` is written to whenever more is on disk."""

    def __init__(self, directory: Path, keeping: Keeping, veils: Veils, wake: int) -> None:
        self._directory = directory
        self._keeping = keeping
        self._veils = veils
        self._wake = wake
        self._journal: Journal | None = None
        self._committer: Committer | None = None
        self._forwarding: Forwarding | None = None
        self._appended = -1
        #: Whether marked records are to be written, and whether somebody waits for them.
        self._marked = self._soon = False
        #: Decisions that were taken in and are to be appended, in order.
        self._taken: list[tuple[Template, int, int, int]] = []
        #: Why nothing can be recorded, and so nothing allowed, any more.
        self.fault: SafeclawError | None = None
        #: Everything is to be on disk soon, whoever waits: the end has begun.
        self.closing = False

    def open(self) -> tuple[Unfinished, ...]:
        """Open the journal; return the sessions it holds no end of.  JournalError, OSError."""
        journal = Journal.open(self._directory, keeping=self._keeping)
        journal.veil = self._veils
        self._committer = Committer(journal, self._wake)
        self._forwarding = Forwarding(journal.directory, journal.chain_id)
        self._forwarding.durable(journal.durable)
        self._journal = journal
        return tuple(journal.unfinished)

    @property
    def journal(self) -> Journal | None:
        """The journal, if it can be written; None before it is open, and after a fault."""
        return self._journal if self.fault is None else None

    # ---- appending

    def append(self, entry: Entry) -> None:
        """Append a record behind what was taken in.  JournalError."""
        assert self._journal is not None
        self.append_taken()
        self._appended = self._journal.append(entry)

    def take(self, template: Template, number: int, pid: int, latency_ns: int) -> None:
        """Take in a decision, for :meth:`append_taken`."""
        self._taken.append((template, number, pid, latency_ns))

    def append_taken(self) -> None:
        """Append the decisions that were taken in.  JournalError."""
        taken, self._taken = self._taken, []
        if taken and self.journal is not None:
            self._appended = self.journal.append_all(taken)

    def mark(self, session: Session) -> None:
        """Remember how far a session's records reach; :meth:`commit_marked` has them written."""
        if session.number > session.marked or session.ending or session.flush:
            session.marked = session.number
            session.marks.append((self._appended, session.number))
        self._marked = True
        self._soon = self._soon or session.waits

    def commit_marked(self) -> None:
        """Have what was marked written, all of it with one sync."""
        if self._marked:
            soon, self._marked, self._soon = self._soon, False, False
            self.commit(soon=soon)

    def commit(self, *, soon: bool = False) -> None:
        """Have what is appended made durable; ``soon``: somebody waits for it."""
        if self._committer is not None:
            self._committer.appended(self._appended, soon=soon or self.closing)

    # ---- how far it is

    @property
    def position(self) -> Position:
        """Where the journal stands."""
        durable = self._committer.durable if self._committer is not None else -1
        if self._journal is None:
            return Position(None, -1, durable)
        return Position(self._journal.chain_id, self._journal.head[0], durable)

    @property
    def standing(self) -> Standing:
        """Where the journal stands, and its copy."""
        if self._journal is None:
            return Standing()
        return standing(self._journal, self._forwarding, self.position.durable)

    def settled(self) -> int:
        """Return how far it is on disk, and have that copied to journald.  JournalFaultError."""
        if self._committer is None:
            return -1
        durable = self._committer.durable
        if self._forwarding is not None:
            self._forwarding.durable(durable)
        if self._committer.fault is not None and self.fault is None:
            raise self._committer.fault
        return durable

    # ---- faults, time and the end

    def fail(self, problem: JournalError) -> str | None:
        """Record nothing any more; return why, the first time."""
        if self.fault is not None:
            return None
        reason = (self._journal.fault if self._journal is not None else None) or problem.message
        text = f"the journal cannot be written: {reason}"
        self.fault = JournalFaultError(text, hint=problem.hint)
        return reason

    def tick(self) -> None:
        """Do what is due: checkpoints and heartbeats.  JournalError."""
        journal = self.journal
        if journal is None or time.monotonic_ns() < journal.next_tick_ns():
            return
        if journal.tick():
            self._appended = journal.head[0]
            if self._committer is not None:
                self._committer.due()

    def next_tick(self) -> float | None:
        """Return in how many seconds something is due; None for never."""
        if self.journal is None:
            return None
        # What is due stays due until it is committed, and the committer wakes the loop.
        return max(PACE, (self.journal.next_tick_ns() - time.monotonic_ns()) / 1e9)

    def close(self) -> None:
        """Write what is left, and close."""
        with contextlib.suppress(JournalError):  # nobody is left to be told
            self.append_taken()
        if self._committer is not None:
            self._committer.stop()
        if self._journal is not None:
            with contextlib.suppress(JournalError):
                self._journal.close()
            if self._forwarding is not None:
                self._forwarding.stop(self._journal.durable)
