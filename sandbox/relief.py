"""Keeps a loop going: when one call holds it up, another thread takes the loop over.

The mediator moves to a thread of its own whatever it knows to wait.  This is for
what it cannot know: a file system whose server hangs, a disk that is asleep.
The loop says what it is busy with; a watch that is awake only while the loop
has something to do looks again after a moment, and if it is the same call still,
gives the turn to a fresh thread.  The one that was held up ends when it is done.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable

#: How long one call may hold up the loop, in seconds.
PATIENCE = 0.02
#: How many threads may be held up at once; then the others wait with them.
_HELD_UP_MAX = 64

#: A loop serves for as long as ``relief.turn`` is the number it was started with.
Loop = Callable[["Relief", int], None]


class Relief:
    """Runs a loop, one thread at a time having the turn; lives as long as the loop.

    ``turn`` is the number of the thread that has it.  That thread sets ``busy`` to what it
    was given to do, a new object each time, and to None when that is done; and calls
    :meth:`wake` unless ``awake``.
    """

    __slots__ = ("_ended", "_failed", "_held_up", "_loop", "_signal", "awake", "busy", "turn")

    def __init__(self, loop: Loop) -> None:
        self.turn = 0
        self.busy: object = None
        self.awake = False
        self._loop = loop
        self._signal = threading.Event()
        self._ended = False
        self._failed: Exception | None = None
        self._held_up = threading.BoundedSemaphore(_HELD_UP_MAX)

    def wake(self) -> None:
        """Have the watch look at the loop, until that is idle."""
        self.awake = True
        self._signal.set()

    def run(self) -> None:
        """Run the loop until it ends; raises what it raises."""
        given = threading.Event()
        given.set()
        if not self._start(self.turn, given):
            raise OSError(errno.EAGAIN, "no thread can be started")
        while not self._ended:
            self._signal.wait()
            self._signal.clear()
            self._watch()
        if self._failed is not None:
            raise self._failed

    def _watch(self) -> None:
        """Look at the loop every moment until it is idle, or has ended."""
        seen: object = None
        while not self._ended:
            now = self.busy
            if now is None:
                self.awake = False
                # INVARIANT: a call that comes behind this look finds nobody awake, and wakes
                if self.busy is None:
                    return
                self.awake = True
            elif now is seen:
                self._relieve()
                seen = None
            else:
                seen = now
            self._signal.wait(PATIENCE)
            self._signal.clear()

    def _relieve(self) -> None:
        # bounded: what is held up holds threads and descriptors
        if not self._held_up.acquire(blocking=False):
            return
        # INVARIANT: the turn is given to a thread that is there.  Taken back again, it could be
        # missed by the one that was held up, and nobody would serve.
        given = threading.Event()
        if not self._start(self.turn + 1, given):
            self._held_up.release()
            return
        self.turn += 1
        self.busy = None
        given.set()

    def _start(self, turn: int, given: threading.Event) -> bool:
        try:
            threading.Thread(
                target=self._serve, args=(turn, given), name="loop", daemon=True
            ).start()
        except RuntimeError:
            return False
        return True

    def _serve(self, turn: int, given: threading.Event) -> None:
        given.wait()
        try:
            self._loop(self, turn)
        except Exception as problem:
            self._failed = problem
            self._ended = True
        if self.turn == turn:
            self._ended = True
        else:
            self._held_up.release()
        self._signal.set()
