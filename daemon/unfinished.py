"""Sessions that a broker left open when it died: who still speaks for them, and their end.

A supervisor that lives closes its session itself, with the next broker.  A session
whose broker and supervisor are both dead is closed by the next start of a broker.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.journal.recovery import Unfinished

_LOST = "the broker and the supervisor of this session died: its last records may be missing"


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
