"""Calls that wait in the kernel for somebody else, made so that their caller can still end.

A thread of the supervisor that opens a FIFO, or connects to a socket whose queue
is full, waits as the agent's own thread would have: without end.  The agent's is
killed, or gets a signal; the supervisor's hears nothing of it.  So a watch, awake
only while anybody waits, looks after the callers, and breaks off what is waited
for in vain with a signal to the thread (signal(7): EINTR).
"""

from __future__ import annotations

import errno
import signal
import threading
from collections.abc import Callable

from safeclaw.sandbox.caller import signal_waits
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import error

#: How often the callers are looked after, in seconds.
_PACE = 0.1
#: SAFETY: no real-time signal. One is not sent (EAGAIN) to who is of a user with as many waiting
#: as RLIMIT_SIGPENDING allows, and the agent, of the same user, may have so many wait.
_SIGNAL = signal.SIGURG

_lock = threading.Lock()
_waiting: dict[int, Notification] = {}
#: Whether the watch is there; under the lock, as the table.
_watched = False


def prepare() -> None:
    """Make the signal break calls off and do nothing else; for the main thread."""
    signal.signal(_SIGNAL, _nothing)


def _nothing(_number: int, _frame: object) -> None:
    pass


def waiting(note: Notification, call: Callable[[], int]) -> int:
    """Make a call that may wait, and raises EINTR for a signal; for a thread of the note's own.

    Raises:
        OSError: what the call raises; EINTR when the caller has a signal to see to; ESRCH
            when it has gone.

    """
    mine = threading.get_ident()
    try:
        with _lock:
            _start_watch()
            _waiting[mine] = note
        while True:
            try:
                return call()
            except OSError as problem:
                if problem.errno != errno.EINTR:
                    raise
            note.check_alive()
            if signal_waits(note.pid):
                raise error(errno.EINTR)
    finally:
        with _lock:
            _waiting.pop(mine, None)


def _start_watch() -> None:
    """Have one watch, and no more: callers come and go faster than it looks; with the lock held."""
    global _watched
    if _watched:
        return
    try:
        threading.Thread(target=_watch, name="interrupter", daemon=True).start()
    except RuntimeError:  # the person has no process left to have: nobody would look after this
        raise error(errno.EAGAIN) from None
    _watched = True


def _watch() -> None:
    global _watched
    pause = threading.Event()
    while True:
        pause.wait(_PACE)
        with _lock:
            if not _waiting:
                _watched = False
                return
            found = list(_waiting.items())
        vain = [thread for thread, note in found if _in_vain(note)]
        with _lock:
            # INVARIANT: whoever is still in the table lives, and is told again if it was not
            # in the call yet.
            for thread in vain:
                if thread in _waiting:
                    signal.pthread_kill(thread, _SIGNAL)


def _in_vain(note: Notification) -> bool:
    try:
        note.check_alive()
    except OSError:
        return True
    return signal_waits(note.pid)
