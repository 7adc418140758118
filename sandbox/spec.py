"""What to launch and in which walls, as a value: made by the daemon, carried out here."""

from __future__ import annotations

import enum

import msgspec

from safeclaw.policies.document import Resources
from safeclaw.sandbox.filters import Filters


class Isolation(enum.StrEnum):
    """How an agent is kept apart: by every layer, or by those that need no namespaces."""

    FULL = "full"
    LANDLOCK = "landlock"


class Degraded(enum.StrEnum):
    """The layers that a run may go without where the host lacks them, if it was asked to."""

    LANDLOCK_ABI = "landlock-abi"
    CGROUP = "cgroup"


class LaunchSpec(msgspec.Struct, frozen=True):
    """What to run, and the walls to run it in; all paths are absolute."""

    command: tuple[str, ...]
    workspace: str
    view: tuple[str, ...]
    writable: tuple[str, ...]
    executable_roots: tuple[str, ...]
    masked: tuple[str, ...] = ()
    #: Where nothing is allowed, since names there are without regard to case.
    caseless: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    network: bool = False
    #: What to load instead of what would be built for this.
    filters: Filters | None = None
    isolation: Isolation = Isolation.FULL
    degraded: tuple[Degraded, ...] = ()
    #: The names that rules spell out, for a session without a resolver of its own.
    hosts: tuple[str, ...] = ()
    resources: Resources = Resources()
    #: What the first processes set for the agent: see ``limits``.
    rlimits: tuple[tuple[int, int], ...] = ()
    cgroup: str = ""
    #: Signals that the agent is started with blocked, and ignored (execve(2) keeps both).
    signals: tuple[int, ...] = ()
    ignored: tuple[int, ...] = ()
