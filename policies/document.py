"""A policy as a value: what a YAML file says, after every check and before compiling.

Frozen and plain, so that a lease can carry it over a socket (msgspec encodes
it) and its hash names it.
"""

from __future__ import annotations

import enum

import msgspec

#: The longest policy file, in bytes.
MAX_BYTES = 256 * 1024
#: The name of the preset that every policy may have behind its own rules.
RUNTIME_NAME = "runtime"


class Effect(enum.StrEnum):
    """What a rule does with an attempt that matches it."""

    ALLOW = "allow"
    DENY = "deny"
    ASK = "ask"


class Mode(enum.StrEnum):
    """Whether the verdicts bind, or are only recorded."""

    ENFORCE = "enforce"
    OBSERVE = "observe"


class Assurance(enum.StrEnum):
    """Whether an attempt waits for its record (strict), or only sends it first."""

    PIPELINED = "pipelined"
    STRICT = "strict"


class Runtime(enum.StrEnum):
    """Whether the runtime preset stands before the final catch-all."""

    DEFAULT = "default"
    NONE = "none"


class PortRange(msgspec.Struct, frozen=True):
    """Ports from ``low`` to ``high``, both included."""

    low: int
    high: int


class Rule(msgspec.Struct, frozen=True):
    """One rule.  An empty tuple of conditions means "any"; a filled one "any of".

    ``line`` is the line of the file on which the rule begins, from 1.
    """

    id: str
    line: int
    actions: tuple[str, ...]
    effect: Effect
    paths: tuple[str, ...] = ()
    commands: tuple[str, ...] = ()
    hosts: tuple[str, ...] = ()
    ports: tuple[PortRange, ...] = ()
    protocols: tuple[str, ...] = ()
    reason: str = ""
    file: str = ""
    """The parent that the rule comes from; "" for the policy's own."""

    @property
    def unconditional(self) -> bool:
        """Whether the rule looks at nothing but the action."""
        return not (self.paths or self.commands or self.hosts or self.ports or self.protocols)

    @property
    def catch_all(self) -> bool:
        """Whether the rule denies everything: the line that ends most policies."""
        return self.unconditional and self.effect is Effect.DENY and "*" in self.actions


class Resources(msgspec.Struct, frozen=True):
    """Limits of the session: bytes, counts, seconds, and for ``cpu`` hundredths of a processor.

    None leaves the default.
    """

    memory: int | None = None
    processes: int | None = None
    cpu: int | None = None
    cpu_time: int | None = None
    file_size: int | None = None
    open_files: int | None = None
    wall_time: int | None = None


class Environment(msgspec.Struct, frozen=True):
    """Which variables the agent inherits (names, a last ``*`` allowed), and which are set.

    ``forbid`` names those with which no program is started (a last ``*`` allowed), ``pin`` those
    that every program is started with.
    """

    inherit: tuple[str, ...] = ()
    assign: tuple[tuple[str, str], ...] = ()
    forbid: tuple[str, ...] = ()
    pin: tuple[tuple[str, str], ...] = ()


class Pseudonymise(msgspec.Struct, frozen=True):
    """What is recorded under a pseudonym: paths, and every target of some actions."""

    paths: tuple[str, ...] = ()
    actions: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        """Whether there is anything."""
        return bool(self.paths or self.actions)


class Policy(msgspec.Struct, frozen=True):
    """A whole policy.  ``sha256`` is over the bytes of the file it was read from.

    With ``parents`` (their names, in the order of their rules) it covers their files too:
    see ``inherit.digest``.
    """

    name: str
    version: str
    sha256: str
    rules: tuple[Rule, ...]
    description: str = ""
    runtime: Runtime = Runtime.DEFAULT
    mode: Mode = Mode.ENFORCE
    assurance: Assurance = Assurance.PIPELINED
    resources: Resources = Resources()
    environment: Environment = Environment()
    parents: tuple[str, ...] = ()
    pseudonymise: Pseudonymise = Pseudonymise()


class Parent(msgspec.Struct, frozen=True):
    """A policy that ``child`` (a file's name) extends as ``ref``: its name and its text.

    ``problem`` says why there is no text.
    """

    child: str
    ref: str
    name: str = ""
    text: bytes = b""
    problem: str = ""
