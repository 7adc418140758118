"""What the broker does for its authority, and for what stands below that."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

from safeclaw.daemon import protocol
from safeclaw.daemon.journal.record import Entry
from safeclaw.daemon.sessions import Session


class Services(Protocol):
    """See the module."""

    def append(self, entry: Entry) -> None:
        """Append a record."""
        ...

    def sessions(self) -> Iterable[Session]:
        """Return the sessions that run."""
        ...

    def post(self, session: Session, message: protocol.ToSupervisor) -> None:
        """Send a message now."""
        ...

    def post_durable(self, session: Session, message: protocol.ToSupervisor) -> None:
        """Send a message once all that is appended is on disk."""
        ...


def session_of(services: Services, ident: str) -> Session | None:
    """Return the session of that id, if it runs."""
    return next((one for one in services.sessions() if ident and one.id == ident), None)
