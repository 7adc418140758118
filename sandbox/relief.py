"""Keeps a loop going: when one call holds it up, another thread takes the loop over.

The mediator moves to a thread of its own whatever it knows to wait.  This is for
what it cannot know: a file system whose server hangs, a disk that is asleep.
The loop says what it is busy with; a watch that is awake only while the loop
has something to do looks again after a moment, and if it is the same call still,
gives the turn to a fresh thread.  The one that was held up ends when it is done.
"""

from __future__ import annotations

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
        self._start(self.turn)
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
        self.turn += 1
        self.busy = None
        if not self._start(self.turn):
            self.turn -= 1
            self._held_up.release()

    def _start(self, turn: int) -> bool:
        try:
            threading.Thread(target=self._serve, args=(turn,), name="loop", daemon=True).start()
        except RuntimeError:
            return False
        return True

    def _serve(self, turn: int) -> None:
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
