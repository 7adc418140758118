"""Has the policies read again, in a thread, when their files change or somebody asks.

Once a day it has the archive of their texts swept, behind the journal's pruning.  It belongs to
the broker's main thread, and lives as long as the broker.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safeclaw.daemon.authority import Authority
from safeclaw.daemon.inforce import Look
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError

if TYPE_CHECKING:
    from safeclaw.daemon.policywatch import PolicyWatch

#: How often the archive is swept, in seconds; never is the broker woken for it.
_SWEEP = 86_400.0


class Lookout:
    """See the module.  ``wake`` has the broker's loop turn, from any thread."""

    def __init__(self, authority: Authority, journal: Path, wake: Callable[[], None]) -> None:
        self._authority = authority
        self._journal = journal
        self._sweep_due = 0.0
        self._wake = wake
        self._looked: queue.SimpleQueue[list[Look]] = queue.SimpleQueue()
        self._looking = self._again = False
        #: Who is told what the look has found that goes on, or the one after it.
        self._told_now: list[Session] = []
        self._told_next: list[Session] = []
        self._watch: PolicyWatch | None = None
        self._turn = 0

    def look(self, session: Session | None = None) -> None:
        """Read the policies again; :meth:`tick` takes in what that finds, and for whom.

        One thread at a time: what changes meanwhile is looked at once more afterwards.
        """
        if session is not None:
            self._told_next.append(session)
        if self._looking:
            self._again = True
            return
        self._looking, self._again = True, False
        self._told_now, self._told_next = self._told_next, []

        def work() -> None:
            looks: list[Look] = []
            try:
                looks = self._authority.policies.look()
            finally:
                self._looked.put(looks)
                self._wake()

        threading.Thread(target=work, name="policies", daemon=True).start()

    def tick(self) -> list[Session]:
        """Take in what the thread has found; return who waits to be told of it."""
        if time.monotonic() >= self._sweep_due:
            self._sweep_due = time.monotonic() + _SWEEP
            sweep = self._authority.policies.sweep(self._journal)
            threading.Thread(target=sweep, name="sweep", daemon=True).start()
        told: list[Session] = []
        looked = False
        while not self._looked.empty():
            looked, self._looking = True, False
            self._authority.policies.accept(self._looked.get())
            self._authority.changed()
            told += self._told_now
            self._told_now = []
            if self._again:
                self.look()
        policies = self._authority.policies
        # the same texts may lie elsewhere by now
        if self._watch is not None and (looked or self._turn != policies.turn):
            self._turn = policies.turn
            if self._watch.update(policies.watched()):
                self.look()
        return told

    def watch(self) -> int:
        """Begin to watch the policies' files; return the descriptor to poll.  BrokerError."""
        from safeclaw.daemon.policywatch import PolicyWatch

        try:
            self._watch = PolicyWatch(self._authority.policies.watched())
        except OSError as problem:
            raise BrokerError(
                f"the policies' files cannot be watched: {problem}",
                hint="raise the sysctl fs.inotify.max_user_instances",
            ) from problem
        return self._watch.fileno()

    def watches(self, number: int) -> bool:
        """Take in a change, if that descriptor is the one of :meth:`watch`."""
        if self._watch is None or number != self._watch.fileno():
            return False
        if self._watch.changed():
            self.look()
        return True
