"""Reads the policies that sessions bring, in a thread: a long one takes a third of a second.

It belongs to the broker's main thread, which goes on with the sessions that run.  Users take
turns: who brings many policies, or long ones, waits for their own.
"""

from __future__ import annotations

import collections
import queue
import threading
from collections.abc import Callable
from pathlib import Path

from safeclaw.daemon import kept, protocol
from safeclaw.daemon.sessions import Session
from safeclaw.policies.document import Policy

#: A session that waits, what it opened with, and its policy or why there is none.
Read = tuple[Session, protocol.Hello, Policy | Exception]


class Brought:
    """See the module.  ``wake`` has the broker's loop turn, from any thread."""

    def __init__(self, state: Path, wake: Callable[[], None]) -> None:
        self._state = str(state)
        self._wake = wake
        self._change = threading.Condition()
        #: Who waits, by user; the user whose turn it is comes first.
        self._waiting: dict[int, collections.deque[tuple[Session, protocol.Hello]]] = {}
        self._read: queue.SimpleQueue[Read] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None

    def read(self, session: Session, hello: protocol.Hello) -> None:
        """Have a session's policy read; :meth:`done` gives it back."""
        if self._thread is None:
            thread = threading.Thread(target=self._work, name="brought", daemon=True)
            thread.start()  # RuntimeError: there is none to have, and nobody waits for it
            self._thread = thread
        with self._change:
            self._waiting.setdefault(session.uid, collections.deque()).append((session, hello))
            self._change.notify()

    def done(self) -> list[Read]:
        """Return, once, what has been read."""
        found: list[Read] = []
        while not self._read.empty():
            found.append(self._read.get())
        return found

    def _next(self) -> tuple[Session, protocol.Hello]:
        with self._change:
            self._change.wait_for(lambda: self._waiting)
            uid = next(iter(self._waiting))
            line = self._waiting.pop(uid)
            first = line.popleft()
            if line:
                self._waiting[uid] = line  # behind the others
            return first

    def _work(self) -> None:
        while True:
            session, hello = self._next()
            outcome: Policy | Exception
            try:
                outcome = kept.policy(
                    self._state, hello.policy_name, hello.policy_text, hello.policy_parents
                )
            except Exception as problem:
                # SAFETY: whatever one of them is, the others' are still to be read.
                outcome = problem
            self._read.put((session, hello, outcome))
            self._wake()
