"""The kill switch: who must not run, until somebody says that they may again.

It is a file in the state directory, so that it holds across restarts of the broker
and of the machine.  A switch names a user, an agent, both, or neither (everybody).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import time
from collections.abc import Generator
from pathlib import Path

import msgspec

from safeclaw.daemon import statefile
from safeclaw.errors import BrokerError

FILE_NAME = "killed.json"
LOCK_NAME = "killed.lock"
#: How often another's change is waited for, and how long each time, in seconds.
_LOOKS, _MOMENT = 200, 0.01


class Switch(msgspec.Struct, frozen=True, omit_defaults=True):
    """One order.  ``uid`` None: every user; ``agent`` None: every agent."""

    since: str
    by: int
    why: str = ""
    uid: int | None = None
    agent: str | None = None

    def holds(self, uid: int, agent: str) -> bool:
        """Whether a session of this user and agent must not run."""
        return self.uid in (None, uid) and self.agent in (None, agent)

    def __str__(self) -> str:
        whom = "every agent" if self.agent is None else self.agent
        return f"{whom} was stopped by uid {self.by} at {self.since}" + (
            f": {self.why}" if self.why else ""
        )


class KillSwitch:
    """The orders in force, as the file has them."""

    def __init__(self, state: Path) -> None:
        self._path = state / FILE_NAME
        self._seen: tuple[int, int] | None = None
        self._switches: tuple[Switch, ...] = ()

    def _refresh(self) -> None:
        """Read the file again if it is another: ``safeclaw kill`` writes it when we are stuck."""
        try:
            found = os.stat(self._path)
            seen = (found.st_ino, found.st_mtime_ns)
        except FileNotFoundError:
            seen = None
        if seen != self._seen or seen is None:
            self._switches = statefile.read(self._path, tuple[Switch, ...], ())
            self._seen = seen

    @property
    def switches(self) -> tuple[Switch, ...]:
        """Return the orders in force.  BrokerError."""
        self._refresh()
        return self._switches

    def against(self, uid: int, agent: str) -> Switch | None:
        """Return an order that stands against a session, or None.  BrokerError."""
        return next((one for one in self.switches if one.holds(uid, agent)), None)

    def add(self, switch: Switch) -> None:
        """Put an order in force, on disk; one for the same whom is replaced.  BrokerError."""
        with self._alone():
            rest = tuple(one for one in self.switches if not _same(one, switch.uid, switch.agent))
            self._write((*rest, switch))

    def remove(self, uid: int | None, agent: str | None) -> tuple[Switch, ...]:
        """Lift the orders for exactly this user and agent; return them.  BrokerError."""
        with self._alone():
            lifted = tuple(one for one in self.switches if _same(one, uid, agent))
            if lifted:
                self._write(tuple(one for one in self._switches if one not in lifted))
            return lifted

    @contextlib.contextmanager
    def _alone(self) -> Generator[None]:
        """Change the file while nobody else does: the broker, and ``safeclaw kill`` without it.

        SAFETY: a broker that is stopped just here does not keep the last resort's order off the
        disk: after a while it is written all the same.
        """
        path = self._path.with_name(LOCK_NAME)
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as problem:
            raise BrokerError.of(problem, f"{path}: cannot be opened") from problem
        try:
            for _ in range(_LOOKS):
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except OSError:
                    time.sleep(_MOMENT)
            yield
        finally:
            os.close(lock)

    def _write(self, switches: tuple[Switch, ...]) -> None:
        statefile.write(self._path, switches)
        self._switches = switches
        found = os.stat(self._path)
        self._seen = (found.st_ino, found.st_mtime_ns)


def _same(switch: Switch, uid: int | None, agent: str | None) -> bool:
    return (switch.uid, switch.agent) == (uid, agent)
