"""What becomes of a request: the value between those who carry it out and the desk."""

from __future__ import annotations

import msgspec

from safeclaw.daemon.sessions import Session


class Outcome(msgspec.Struct, frozen=True):
    """What to reply, once these sessions have ended and all is on disk."""

    data: object
    sessions: tuple[Session, ...] = ()
    #: The reply waits until the policies were read again; it is what that has found.
    looks: bool = False
    #: A program of its own replies, from the journal: everything, or only what is the asker's.
    reads_everything: bool | None = None
