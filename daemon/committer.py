"""Group commit: one thread that makes durable what another has appended.

It lives as long as the broker and borrows the journal.  After each commit, and
on a fault, it writes a byte to ``wake``.
"""

from __future__ import annotations

import contextlib
import os
import threading

from safeclaw.daemon.journal.journal import Journal
from safeclaw.errors import JournalError, JournalFaultError

#: While nobody waits, commits are at least this far apart, in seconds: a sync costs the same
#: for one record and for a thousand.
PACE = 0.005


class Committer:
    """Commits over and over while there is something to commit."""

    def __init__(self, journal: Journal, wake: int) -> None:
        self._journal = journal
        self._wake = wake
        self._work = threading.Condition()
        self._appended = journal.durable
        self._durable = journal.durable
        self._closing = False
        self._soon = False
        self._due = False
        self._paced = False
        self._fault: JournalError | None = None
        self._thread = threading.Thread(target=self._run, name="commit", daemon=True)
        self._thread.start()

    @property
    def durable(self) -> int:
        """The highest journal sequence number that is on disk."""
        return self._durable

    @property
    def fault(self) -> JournalError | None:
        """Why nothing is committed any more."""
        return self._fault

    def appended(self, sequence: int, *, soon: bool) -> None:
        """Have everything up to that number committed; ``soon`` means that somebody waits."""
        with self._work:
            self._appended = sequence
            if self._durable < sequence:
                self._soon = self._soon or soon
                if self._soon or not self._paced:
                    self._work.notify()

    def due(self) -> None:
        """Have a commit made though nothing may be new: a checkpoint waits to be published."""
        with self._work:
            self._due = True
            self._work.notify()

    def stop(self) -> None:
        """End the thread; what it has not committed, closing the journal will."""
        with self._work:
            self._closing = True
            self._work.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._work:
                self._paced = True
                self._work.wait_for(lambda: self._soon or self._closing, PACE)
                self._paced = False
                self._work.wait_for(
                    lambda: self._durable < self._appended or self._due or self._closing
                )
                if self._closing:
                    return
                self._soon = self._due = False
            try:
                self._durable = self._journal.commit()
            except Exception as problem:
                # SAFETY: without this thread nothing is on disk any more; that must be known.
                self._fault = (
                    problem
                    if isinstance(problem, JournalError)
                    else JournalFaultError(
                        f"a defect: {type(problem).__name__}: {problem}",
                        hint="please report it, and restart the broker",
                    )
                )
                self._ring()
                return
            self._ring()

    def _ring(self) -> None:
        with contextlib.suppress(BlockingIOError):  # full: the other is awake anyway
            os.write(self._wake, b"c")
