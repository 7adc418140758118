"""Alerts: what somebody should look at now, told to a command of the operator's.

The first alert of a kind leaves at once; those that follow it within a minute are held
and leave as one, with their number.  A hook that cannot be started, or that fails, is
said and counted: it never stops the broker.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from safeclaw.daemon import hooks
from safeclaw.daemon.protocol import JsonObject

#: How far apart two alerts of one kind are at least, in seconds.
EVERY = 60.0


class Alert(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a hook reads, as JSON.  ``count`` is how many like it this one stands for."""

    alert: str
    reason: str
    count: int = 1
    session: str | None = None
    agent: str | None = None
    action: str | None = None
    target: JsonObject | None = None
    denials: int | None = None
    at: int = 0
    chain: str | None = None


class Tally(msgspec.Struct, frozen=True):
    """What became of the alerts: how many hooks were started, and how many failed."""

    configured: bool = False
    raised: int = 0
    sent: int = 0
    failed: int = 0
    problem: str | None = None


class _Held(msgspec.Struct):
    until: float
    count: int = 0
    newest: Alert | None = None


class Alerts:
    """Belongs to the broker; ``failed`` records that a hook did not do its work."""

    def __init__(
        self,
        command: tuple[str, ...],
        chain: Callable[[], str | None],
        failed: Callable[[str], None],
    ) -> None:
        self._chain = chain
        self._command = command
        self._failed = failed
        self._held: dict[str, _Held] = {}
        self._tally = Tally(configured=bool(command))

    @property
    def tally(self) -> Tally:
        """What became of the alerts since the start."""
        return self._tally

    def raised(self, alert: Alert, now: float | None = None) -> None:
        """Send an alert, or hold it until its kind may leave again."""
        now = time.monotonic() if now is None else now
        self._tally = msgspec.structs.replace(self._tally, raised=self._tally.raised + 1)
        held = self._held.get(alert.alert)
        if held is not None and now < held.until:
            held.count += alert.count
            held.newest = alert
            return
        count = alert.count + (held.count if held is not None else 0)
        self._held[alert.alert] = _Held(now + EVERY)
        self._send(alert, count)

    def tick(self, now: float) -> None:
        """Send what was held and is due; take in which hooks have failed."""
        for kind, held in list(self._held.items()):
            if held.newest is not None and now >= held.until:
                self._held[kind] = _Held(now + EVERY)
                self._send(held.newest, held.count)
        for problem in hooks.failures():
            self._fails(problem)

    def next_tick(self, now: float) -> float | None:
        """Return in how many seconds something that is held may leave."""
        due = [held.until for held in self._held.values() if held.newest is not None]
        return max(0.0, min(due) - now) if due else None

    def _send(self, alert: Alert, count: int) -> None:
        if not self._command:
            return
        tells = msgspec.structs.replace(
            alert, count=count, at=int(time.time()), chain=self._chain()
        )
        problem = hooks.spawn(self._command, tells)
        if problem is not None:
            self._fails(problem)
            return
        self._tally = msgspec.structs.replace(self._tally, sent=self._tally.sent + 1)

    def _fails(self, problem: str) -> None:
        failed = self._tally.failed + 1
        self._tally = msgspec.structs.replace(self._tally, failed=failed, problem=problem)
        self._failed(problem)
