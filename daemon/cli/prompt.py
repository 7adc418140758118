"""A question on the terminal of the person who started the agent.

The agent has the same terminal, so nothing that it writes there may count as an
answer: the answer is read from /dev/tty after what was typed before is thrown away,
and is sent to the broker as that person's own, over a connection of its own.  What it
has done to the terminal's colours and letters is undone before the question, and a
question that would scroll away is not put here.
"""

from __future__ import annotations

import contextlib
import os
import termios
import threading

from safeclaw.daemon import control, display, protocol
from safeclaw.daemon.client import ANSWER, Client
from safeclaw.errors import SafeclawError
from safeclaw.policies.model import Attempt, describe

_one_at_a_time = threading.Lock()
_shown: set[str] = set()
#: Longer ones, in characters, are answered where they can be read at leisure.
_LONGEST = 1000
_CHOICES = {
    "y": ("once", "approve"),
    "yes": ("once", "approve"),
    "s": ("session", "approve"),
    "session": ("session", "approve"),
    "n": ("", "refuse"),
    "no": ("", "refuse"),
}


def tell(asked: protocol.Asked, attempt: Attempt) -> None:
    """Say once that an attempt waits, and how it is answered from elsewhere."""
    if asked.approval in _shown:
        return
    display.tell(
        f"safeclaw: waiting for approval {asked.approval}: {attempt.action} "
        f"{describe(attempt.target)}; safeclaw approvals approve {asked.approval}"
    )


def start(asked: protocol.Asked, attempt: Attempt, client: Client) -> None:
    """Ask on the terminal, if there is one, in a thread of its own."""
    if asked.approval in _shown:
        return
    _shown.add(asked.approval)
    if len(describe(attempt.target)) > _LONGEST:
        display.tell(
            "safeclaw: too long to be asked here: safeclaw approvals --json shows it whole"
        )
        return
    try:
        tty = os.open("/dev/tty", os.O_RDWR | os.O_CLOEXEC | os.O_NOCTTY)
    except OSError:
        return
    threading.Thread(
        target=_ask, args=(tty, asked, attempt, client), name="prompt", daemon=True
    ).start()


def _ask(tty: int, asked: protocol.Asked, attempt: Attempt, client: Client) -> None:
    with _one_at_a_time, open(tty, "r+b", buffering=0) as terminal:
        line = f"safeclaw: allow {attempt.action} {describe(attempt.target)}? "
        while True:
            with contextlib.suppress(termios.error):
                termios.tcflush(terminal.fileno(), termios.TCIFLUSH)
            try:
                terminal.write((display.PLAIN + line + "[y]es once, [s]ession, [n]o: ").encode())
                said = terminal.readline().decode("utf-8", "replace").strip().lower()
            except OSError:
                return
            if not said:
                return  # end of file: somebody else may still answer
            if said in _CHOICES:
                break
        scope, verb = _CHOICES[said]
        request: control.Request
        if verb == "approve":
            request = control.Approve(asked.approval, scope)
        else:
            request = control.Refuse(asked.approval)
        try:
            other = client.again()
            try:
                other.ask(request, ANSWER)
            finally:
                other.channel.close()
        except SafeclawError as problem:
            display.tell("\n".join(problem.diagnostics()))
        except OSError as problem:
            display.tell(f"safeclaw: the answer could not be given: {problem.strerror}")
