"""What a person sees while an agent runs: one escaped line per denial, on stderr.

A stderr that is closed or full loses the lines, never the session: the journal
has them all.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import os
import select
import termios
import threading
from collections.abc import Callable

from safeclaw.daemon.errands import Errands
from safeclaw.policies.model import Attempt, Verdict, describe, is_seen, printable

_LONGEST = 300
#: How much may wait to be read: the agent asks, and what it asks is kept meanwhile.
_UNTOLD_MAX = 64
#: How long the last words wait for somebody to read them, in seconds.
_LAST_WORDS = 1.0
#: ECMA-48: no attributes, US ASCII for letters, the cursor seen, a line that is empty.
PLAIN = "\x1b[0m\x0f\x1b(B\x1b[?25h\r\x1b[K"
#: The same after an agent has ended, on the screen that was there before it.
_LAST = "\x1b[?1047l" + PLAIN


def denial_line(
    attempt: Attempt, verdict: Verdict, workspace: str, *, observed: bool = False
) -> str:
    """Return the line for a denial: what, why, and the policy line that would allow it.

    ``observed`` says that the session only observes: denials are let through.
    """
    what = describe(attempt.target)
    word = "would deny" if observed and verdict.rule != "protected" else "denied"
    text = f"safeclaw: {word} {attempt.action} {_short(what)} [{printable(verdict.rule)}]"
    if verdict.reason:
        text += f" {_short(printable(verdict.reason))}"
    if len(what) > _LONGEST:
        return text  # nor would the policy line be whole, which takes seconds for megabytes
    from safeclaw.policies.explain import remedy  # most runs deny nothing

    allowing = remedy(attempt, verdict, workspace)
    if allowing is not None:
        # as it is: another backslash would be another policy. What is not seen is quoted in it
        seen = all(map(is_seen, allowing))
        text += f"; to allow: {_short(allowing if seen else printable(allowing))}"
    return text


def tell(text: str, *, patient: bool = True, last: bool = False) -> None:
    """Write whole lines to stderr, at once, so that they do not mix with the agent's.

    ``last`` undoes what an agent that has ended did to the terminal: it could hide them.
    Where nobody reads them, ``patient`` waits; else they are lost: whoever calls this in the
    middle of an attempt is who answers the agent.
    """
    with contextlib.suppress(OSError):
        if last and os.isatty(2):
            text = _LAST + text
        data = (text + "\n").encode("utf-8", "backslashreplace")
        if patient or (len(data) <= select.PIPE_BUF and _has_room(2)):
            os.write(2, data)


class Teller:
    """Tells a person one thing after the other, for those who must not wait until it is read.

    SAFETY: an agent can fill or stop the terminal that it shares.  What hears the broker, or puts
    a policy in force, would wait as long.
    """

    def __init__(self) -> None:
        self._turns = Errands("telling")
        self._untold: collections.deque[Callable[[], None]] = collections.deque()
        self._lock = threading.Lock()

    def tell(self, text: str, *, last: bool = False) -> None:
        """Have whole lines written to stderr; see :func:`tell`."""
        self.put(lambda: tell(text, last=last))

    def put(self, telling: Callable[[], None]) -> None:
        """Have the person told, unless they are too far behind.

        With no thread to be had, since the agent has all that there may be, they are told with what
        comes next, or when it has ended.
        """
        with self._lock:
            if len(self._untold) + len(self._turns) < _UNTOLD_MAX:
                self._untold.append(telling)
        self._hand_on()

    def settle(self) -> None:
        """Wait until it is told, but not for ever; to be called when no agent runs any more."""
        with contextlib.suppress(termios.error):  # it is no terminal
            termios.tcflow(2, termios.TCOON)  # which the agent may have stopped
        self._hand_on()
        self._turns.settle(_LAST_WORDS)

    def _hand_on(self) -> None:
        with self._lock, contextlib.suppress(RuntimeError):
            while self._untold:
                self._turns.put(functools.partial(_try, self._untold[0]))
                self._untold.popleft()


def _try(telling: Callable[[], None]) -> None:
    with contextlib.suppress(RuntimeError):  # it wanted a thread, and there was none
        telling()


def _has_room(descriptor: int) -> bool:
    """Whether PIPE_BUF bytes can be written without waiting (poll(2), pipe(7))."""
    poller = select.poll()
    poller.register(descriptor, select.POLLOUT)
    return bool(poller.poll(0))


def _short(text: str) -> str:
    return text if len(text) <= _LONGEST else text[: _LONGEST - 1] + "…"
