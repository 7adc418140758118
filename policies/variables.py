"""Which variables a program may be started with: what ``environment:`` forbids and pins.

An entry of an environment is the bytes ``NAME=VALUE`` (environ(7)).  One without ``=`` has the
name alone: most programs ignore it, some do not.  Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from safeclaw.policies.document import Environment
from safeclaw.policies.model import printable

#: How many names are said of one program: an agent chooses how many there are.
_NAMED_MAX = 8


def _encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


class Variables:
    """The forbidden and the pinned variables of one policy; immutable.

    A pinned one is never forbidden: ``forbid: LD_*`` leaves what is pinned of that name.
    """

    def __init__(self, environment: Environment) -> None:
        self._forbidden = frozenset(name for name in environment.forbid if name[-1] != "*")
        self._starts = tuple(name[:-1] for name in environment.forbid if name[-1] == "*")
        self._pinned = dict(environment.pin)
        self._entries = {
            _encoded(name): _encoded(f"{name}={value}") for name, value in environment.pin
        }

    def forbids(self, name: str) -> bool:
        """Whether no program may be started with the variable, whatever its value."""
        if name in self._pinned:
            return False
        return name in self._forbidden or (bool(self._starts) and name.startswith(self._starts))

    def refused(self, entries: Iterable[bytes]) -> tuple[str, ...]:
        """Return the names for which no program may be started with these entries.

        They are forbidden, or pinned and have another value, a second one, or none.
        """
        if not (self._forbidden or self._starts or self._entries):
            return ()
        found: dict[str, None] = {}
        missing = dict.fromkeys(self._entries)
        for entry in entries:
            raw = entry.partition(b"=")[0]
            name = raw.decode("utf-8", "surrogateescape")
            pinned = self._entries.get(raw)
            if entry == pinned:
                missing.pop(raw, None)
            elif pinned is not None or self.forbids(name):
                found[name] = None
        found |= dict.fromkeys(raw.decode() for raw in missing)
        return tuple(found)[:_NAMED_MAX]

    def reason(self, names: Iterable[str]) -> str | None:
        """Return why a program with these names as :meth:`refused` says is not started, or None."""
        for name in names:
            if name in self._pinned:
                return f"{name} is not what 'pin' under environment: says"
            if self.forbids(name):
                return f"{printable(name)} is a variable that 'forbid' under environment: names"
        return None

    def first(self, chosen: Mapping[str, str]) -> dict[str, str]:
        """Return what a session starts with, of what was chosen for it."""
        kept = {name: value for name, value in chosen.items() if not self.forbids(name)}
        return kept | self._pinned

    def refused_with(self, given: Mapping[str, str]) -> tuple[str, ...]:
        """Return what is refused of a program that is started with ``given`` besides the pinned."""
        chosen = self._pinned | dict(given)
        return self.refused(_encoded(f"{name}={value}") for name, value in chosen.items())
