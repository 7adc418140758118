"""A thread that does one thing after the other, for one that must not wait for them.

It begins with the first of them, and lives as long as its process.
"""

from __future__ import annotations

import collections
import threading
from collections.abc import Callable


class Errands:
    """See the module.  An errand raises nothing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._change = threading.Condition()
        self._waiting: collections.deque[Callable[[], None]] = collections.deque()
        self._open = 0
        self._thread: threading.Thread | None = None

    def put(self, errand: Callable[[], None]) -> None:
        """Have this done, after what was put before."""
        with self._change:
            if self._thread is None:
                thread = threading.Thread(target=self._run, name=self._name, daemon=True)
                thread.start()  # RuntimeError: there is none to have, and nothing was put
                self._thread = thread
            self._waiting.append(errand)
            self._open += 1
            self._change.notify_all()

    def __len__(self) -> int:
        """How many are not done yet."""
        return self._open

    def settle(self, seconds: float | None = None) -> None:
        """Wait until all that was put is done, at most so long."""
        with self._change:
            self._change.wait_for(lambda: not self._open, seconds)

    def _run(self) -> None:
        while True:
            with self._change:
                self._change.wait_for(lambda: self._waiting)
                errand = self._waiting.popleft()
            errand()
            with self._change:
                self._open -= 1
                self._change.notify_all()
