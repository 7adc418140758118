"""The programs that read the journal out to people: how many there are, and their end.

It belongs to the broker's main thread, which never waits for any of them.
"""

from __future__ import annotations

import collections
import os
import signal
import sys
from pathlib import Path

import msgspec

from safeclaw.daemon import control
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError

#: How many may run at once, for one user and altogether.
_USERS_MAX = 2
_MAX = 8


class Readers:
    """See the module."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._running: dict[int, Session] = {}

    def start(self, session: Session, request: control.Records, *, everything: bool) -> None:
        """Have a program answer a request, on the session's own socket.  BrokerError."""
        self.reap()
        users = collections.Counter(one.uid for one in self._running.values())
        if users[session.uid] >= _USERS_MAX or len(self._running) >= _MAX:
            raise BrokerError(
                "too many read the journal at once", hint="try again when they are done"
            )
        who = "-" if everything else str(session.uid)
        wanted = msgspec.json.encode(request).decode()
        null = -1
        try:
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            pid = os.posix_spawn(
                sys.executable,
                (
                    *(sys.executable, "-I", "-m", "safeclaw.daemon.readout"),
                    *(str(self._journal), who, wanted),
                ),
                {name: os.environ[name] for name in ("PATH", "LANG") if name in os.environ},
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, session.channel.fileno(), 0),
                    (os.POSIX_SPAWN_DUP2, null, 1),
                ],
                setsigdef=[signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM],
                setpgroup=0,
            )
        except OSError as problem:
            raise BrokerError.of(problem, "the journal cannot be read out") from problem
        finally:
            if null >= 0:
                os.close(null)
        self._running[pid] = session

    def reap(self) -> list[Session]:
        """Let go of those that have ended; return whom one has left without an end."""
        left: list[Session] = []
        for pid, session in list(self._running.items()):
            try:
                ended, status = os.waitpid(pid, os.WNOHANG)
            except ChildProcessError:
                ended, status = pid, 0
            if ended:
                del self._running[pid]
                if status != 0:
                    left.append(session)
        return left
