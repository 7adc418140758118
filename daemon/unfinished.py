"""Sessions that a broker left open when it died: who still speaks for them, and their end.

A supervisor that lives closes its session itself, with the next broker.  A session
whose broker and supervisor are both dead is closed by the next start of a broker.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.journal.recovery import Unfinished

_LOST = "the broker and the supervisor of this session died: its last records may be missing"


#: How many sessions that ended lately may still bring records that were on their way.
_LATELY_MAX = 256


class LeftOpen:
    """The sessions that may come back to this broker: the last one's, and those that broke off."""

    def __init__(self) -> None:
        self._orphans: dict[str, Unfinished] = {}
        self._until = 0.0
        self._lately: dict[str, None] = {}

    def wait_for(self, sessions: Iterable[Unfinished], grace: float) -> None:
        """Give the sessions of the last broker so many seconds to come back."""
        self._orphans = {one.session: one for one in sessions}
        self._until = time.monotonic() + grace

    def broke_off(self, ident: str) -> None:
        """Remember a session whose connection has ended."""
        self._lately[ident] = None
        if len(self._lately) > _LATELY_MAX:
            del self._lately[next(iter(self._lately))]

    def __contains__(self, ident: str) -> bool:
        return ident in self._orphans or ident in self._lately

    def came_back(self, ident: str) -> None:
        """Take in that a session goes on."""
        self._orphans.pop(ident, None)
        self._lately.pop(ident, None)

    def due(self) -> Iterator[Entry]:
        """Yield what closes the sessions that have not come back in time."""
        if self._orphans and time.monotonic() >= self._until:
            orphans, self._orphans = self._orphans, {}
            yield from closing(orphans.values(), gone=True)

    def next_due(self) -> float | None:
        """Return in how many seconds :meth:`due` has something; None for never."""
        return max(0.0, self._until - time.monotonic()) if self._orphans else None


def closing(sessions: Iterable[Unfinished], *, gone: bool = False) -> Iterator[Entry]:
    """Yield what closes the sessions for which nobody speaks any more.

    ``gone`` says that all of these had their time to come back.
    """
    for session in sessions:
        if not gone and alive(session):
            continue
        yield Entry(
            type=RecordType.RECOVERY,
            session=session.session,
            agent=session.agent,
            uid=session.uid,
            reason=_LOST,
        )
        yield Entry(
            type=RecordType.SESSION_END,
            session=session.session,
            agent=session.agent,
            uid=session.uid,
            reason="closed by the next start of a broker",
        )


def alive(session: Unfinished) -> bool:
    """Whether the session's supervisor lives.

    A process that began after the session did is another one with the same number.
    """
    boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    if session.boot_id != boot or session.supervisor is None:
        return False
    try:
        stat = Path(f"/proc/{session.supervisor}/stat").read_text("utf-8", "replace")
    except OSError:
        return False
    # proc_pid_stat(5): after the name, which may hold anything, come the state (3) and
    # the start (22), in ticks since the boot.
    fields = stat.rpartition(")")[2].split()
    began_us = int(fields[19]) * 1_000_000 // os.sysconf("SC_CLK_TCK")
    return fields[0] not in ("Z", "X") and began_us <= session.boottime_us
