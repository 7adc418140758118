"""The thread that hands durable records to journald, behind the decisions.

It lives as long as the broker and owns the forwarder.  A slow, stopped or
absent journald delays nothing but its own copy; the cursor says where it
stands, and the next record that becomes durable has it try again.
"""

from __future__ import annotations

import select
import threading
import time
from pathlib import Path

from safeclaw.daemon.journal import journald

#: Records are forwarded at most this often, in seconds: the decisions come first, and a
#: thread that wakes for each of them would take the interpreter from them.
PACE = 0.02
#: After a journald that is not there (or not yet again) it is looked for this often, in seconds.
RETRY = 1.0
#: How long the end of a broker waits for a journald that takes no more, in seconds.
PATIENCE = 2.0


class Forwarding:
    """Forwards what :meth:`durable` announces, until :meth:`stop`."""

    def __init__(self, directory: Path, chain: str, path: Path = journald.SOCKET) -> None:
        self._forwarder = journald.Forwarder(directory, chain, path)
        self._work = threading.Condition()
        self._durable = -1
        self._tried = -1
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="journald", daemon=True)
        self._thread.start()

    def durable(self, sequence: int) -> None:
        """Forward everything up to that number, soon."""
        with self._work:
            if sequence > self._durable:
                self._durable = sequence
                self._work.notify()  # one that keeps its pace goes back to sleep

    @property
    def state(self) -> tuple[int, str | None]:
        """The number of the record that is to be forwarded next, and what stands against it."""
        return self._forwarder.next_seq, self._forwarder.problem

    def stop(self, sequence: int) -> None:
        """Forward what is left, for as long as journald takes it, and let go."""
        with self._work:
            self._durable = max(self._durable, sequence)
            self._closing = True
            self._work.notify()
        self._thread.join()
        deadline = time.monotonic() + PATIENCE
        while self._forwarder.pump(self._durable) and self._forwarder.problem is None:
            if not self._room(deadline - time.monotonic()):
                break
        self._forwarder.close()

    def _run(self) -> None:
        while True:
            with self._work:
                self._work.wait_for(lambda: self._tried < self._durable or self._closing)
                if self._closing:
                    return
                self._tried = self._durable
                pace = PACE
            while self._forwarder.pump(self._tried) and self._forwarder.problem is None:
                if not self._room(PATIENCE) or self._closing:
                    break
            if self._forwarder.problem is not None:
                pace = RETRY
            with self._work:
                self._work.wait_for(lambda: self._closing, pace)

    def _room(self, seconds: float) -> bool:
        """Wait until journald's socket takes more."""
        number = self._forwarder.fileno()
        if number < 0 or seconds <= 0:
            return False
        poller = select.poll()
        poller.register(number, select.POLLOUT)
        return bool(poller.poll(seconds * 1000))
