"""The broker as a service: its socket from systemd, readiness, watchdog, status text.

Everything here is silent where there is no service manager (sd_notify(3),
sd_listen_fds(3)).
"""

from __future__ import annotations

import contextlib
import importlib
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safeclaw.daemon.peer import Groups
from safeclaw.daemon.settings import Settings
from safeclaw.errors import BrokerError

#: How often the status text is made anew while something happens, in seconds.
_STATUS_EVERY = 1.0


class Service:
    """What a broker has to know of how it is run.

    ``groups`` None: a broker of one user's own.  ``protected`` are further paths that no
    agent may reach.
    """

    def __init__(
        self,
        *,
        configuration: Path,
        settings: Settings | None = None,
        groups: Groups | None = None,
        protected: tuple[str, ...] = (),
        metrics: tuple[socket.socket, ...] = (),
    ) -> None:
        self.configuration = configuration
        self.settings = settings or Settings()
        self.groups = groups
        self.protected = protected
        #: Listeners on which metrics are served.
        self.metrics = metrics
        self._notifies = "NOTIFY_SOCKET" in os.environ
        usec = os.environ.get("WATCHDOG_USEC", "")
        mine = os.environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
        #: Half of what the manager waits (sd_watchdog_enabled(3)), in seconds.
        self._every = int(usec) / 2e6 if usec.isdigit() and mine and self._notifies else None
        self._alive_at = 0.0
        self._status_at = 0.0
        self._status = ""
        self._stale = False

    def ready(self, status: str) -> None:
        """Say that requests are answered from now on."""
        self._notify(f"READY=1\nSTATUS={status}")
        self._status = status

    def stopping(self) -> None:
        """Say that the end has begun."""
        self._notify("STOPPING=1")

    def alive(self, status: Callable[[], str]) -> None:
        """Feed the watchdog, and keep the status text true; called once a turn of the loop."""
        if not self._notifies:
            return
        now = time.monotonic()
        if self._every is not None and now >= self._alive_at:
            self._alive_at = now + self._every
            self._notify("WATCHDOG=1")
        self._stale = now < self._status_at
        if not self._stale:
            self._status_at = now + _STATUS_EVERY
            text = status()
            if text != self._status:
                self._status = text
                self._notify(f"STATUS={text}")

    def next_alive(self) -> float | None:
        """Return in how many seconds the manager is to hear something."""
        due = [self._alive_at] if self._every is not None else []
        due += [self._status_at] if self._stale else []
        return max(0.0, min(due) - time.monotonic()) if due else None

    def _notify(self, text: str) -> None:
        if self._notifies:
            # A manager that executes itself anew is away for a moment: no reason to stop.
            with contextlib.suppress(OSError):
                _manager().notify(text)


def _manager() -> Any:
    return importlib.import_module("systemd.daemon")  # published without types


def inherited_listener() -> socket.socket | None:
    """Return the socket that systemd listens on for us; None without one.  BrokerError."""
    if "LISTEN_FDS" not in os.environ:
        return None
    daemon = _manager()
    found: list[int] = daemon.listen_fds(True)
    if not found:
        return None
    if len(found) > 1 or not daemon.is_socket_unix(found[0], socket.SOCK_SEQPACKET, 1):
        raise BrokerError(
            "the socket unit has to have one ListenSequentialPacket= socket",
            hint="systemctl cat safeclawd.socket; the shipped one has it",
        )
    listener = socket.socket(fileno=found[0])
    listener.setblocking(False)
    return listener
