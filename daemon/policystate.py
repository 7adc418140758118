"""What is known of each policy: in force, in force before, and waiting.  Values, kept on file."""

from __future__ import annotations

from typing import Final

import msgspec

from safeclaw.daemon.archive import Version

FILE_NAME: Final = "in-force.json"


class Yes(msgspec.Struct, frozen=True):
    """Somebody's word, and when (seconds since the epoch)."""

    uid: int
    at: int


class Pending(msgspec.Struct, frozen=True):
    """What waits for two people; ``wider`` says why it has to."""

    version: Version
    since: int
    wider: tuple[str, ...]
    commit: str = ""
    yes: tuple[Yes, ...] = ()
    refused: Yes | None = None


class PolicyState(msgspec.Struct, frozen=True):
    """What a reference stands for: in force (None: nothing yet) since then, before, and next."""

    ref: str
    current: Version | None = None
    since: int = 0
    earlier: tuple[Version, ...] = ()
    pending: Pending | None = None

    @property
    def versions(self) -> tuple[Version, ...]:
        """Every version that is known."""
        return (*self.live, *self.earlier)

    @property
    def live(self) -> tuple[Version, ...]:
        """What is in force, and what waits."""
        waits = () if self.pending is None else (self.pending.version,)
        now = () if self.current is None else (self.current,)
        return (*now, *waits)

    @property
    def sha256(self) -> str:
        """The hash of what is in force; "" for nothing."""
        return self.current.sha256 if self.current is not None else ""


class OnFile(msgspec.Struct, frozen=True):
    """The file: every policy's state, and whether wider policies needed two people."""

    rule: bool = False
    policies: tuple[PolicyState, ...] = ()
