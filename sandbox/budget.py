"""So many bytes for all: who wants some of them waits its turn, first come, first served.

What an agent has a supervisor copy is in the supervisor's memory until it is done with, and how
many do so at once is for the agent to say.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Generator

from safeclaw.sandbox.caller import signal_waits
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import error

#: How often who waits looks after its caller, in seconds.
_PACE = 0.1
#: linux/errno.h: the kernel makes the call again, as soon as the signal is seen to.
_ERESTARTNOINTR = 513


class Share:
    """A part of a budget, for as long as :meth:`Budget.share` says."""

    __slots__ = ("_budget", "given", "size")

    def __init__(self, budget: Budget, size: int) -> None:
        self._budget = budget
        self.size = size
        self.given = threading.Event()

    def shrink(self, size: int) -> None:
        """Give back what is more than ``size`` bytes."""
        self._budget.take_back(self, max(0, self.size - size))


class Budget:
    """See the module.

    INVARIANT: who has a share never waits for another one, so all shares come back; and the
    largest fits into an empty budget, so the first of those that wait always comes to its turn.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._free = size
        self._waiting: deque[Share] = deque()
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def share(self, note: Notification, size: int) -> Generator[Share]:
        """Have ``size`` bytes; for a thread of the note's own.

        Raises:
            OSError: ESRCH when the caller has gone; ERESTARTNOINTR when it has a signal to see to.

        """
        wanted = Share(self, min(size, self.size))
        with self._lock:
            self._waiting.append(wanted)
            self._give()
        try:
            while not wanted.given.wait(_PACE):
                note.check_alive()
                if _has_signal(note.pid):
                    raise error(_ERESTARTNOINTR)
            yield wanted
        finally:
            self._end(wanted)

    def take_back(self, share: Share, size: int) -> None:
        """Have ``size`` bytes of a share back."""
        with self._lock:
            share.size -= size
            self._free += size
            self._give()

    def _end(self, share: Share) -> None:
        with self._lock:
            if share.given.is_set():
                self._free += share.size
            else:
                self._waiting.remove(share)
            self._give()

    def _give(self) -> None:
        while self._waiting and self._waiting[0].size <= self._free:
            share = self._waiting.popleft()
            self._free -= share.size
            share.given.set()


def _has_signal(pid: int) -> bool:
    """Whether the call has to be made again for a signal, which the kernel holds back till then.

    INVARIANT: of many threads another may take the signal; then the kernel would not make the
    call again, and the caller would see an errno that is none.
    """
    with contextlib.suppress(OSError):
        return len(os.listdir(f"/proc/{pid}/task")) == 1 and signal_waits(pid)
    return False
