"""What rules allow of that which a later one refuses by place: exceptions, which come first.

What a move carries to where an exception is made has been refused, perhaps, and would be
allowed.  It is harmless where as much was allowed before: by the exception itself, or by a
rule with as many actions that no refusing one stands before either.

Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from safeclaw.policies.buckets import covers
from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import Part, led, path_globs
from safeclaw.policies.index import ancestors

#: What can be done to what a move carries along.
_FILES = (
    "file.read", "file.write.create", "file.write.modify", "file.write.delete",
    "file.write.rename", "file.write.link", "file.write.metadata",
)  # fmt: skip
#: What globs look for below a place.
Looks = frozenset[tuple[Part, ...]]
_ALL: tuple[Part, ...] = (None,)


class Spared:
    """The exceptions among some rules, by their numbers.

    Two rules that begin with different directories, of which none lies in the other, have
    nothing in common; any others may have.  ``where`` says of a directory where it is, when
    that is not known of all: those in different places may lie in each other; "" is for itself.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        *,
        workspace: str,
        home: str,
        leads: Mapping[str, str],
        where: Callable[[str], str] = lambda _: "",
    ) -> None:
        self._actions = [_actions(rule) for rule in rules]
        #: How many refusing rules stand before each.
        self._behind: list[int] = []
        behind = 0
        for rule, actions in zip(rules, self._actions, strict=True):
            self._behind.append(behind)
            behind += bool(actions) and rule.effect is not Effect.ALLOW and not rule.catch_all
        self._allowing = frozenset(
            at
            for at, rule in enumerate(rules)
            if rule.effect is Effect.ALLOW and rule.paths and self._actions[at]
        )
        whole = [
            at
            for at, rule in enumerate(rules)
            if rule.effect is Effect.ALLOW and rule.unconditional
        ]
        found = set[int]()
        refused = _Refused(where)
        for at in reversed(range(len(rules))):
            rule, actions = rules[at], self._actions[at]
            if not actions:
                continue
            globs = [
                glob
                for text in rule.paths
                for glob in path_globs(text, workspace=workspace, home=home)
            ]
            if rule.effect is not Effect.ALLOW:
                for glob in globs:
                    for one in led(glob, leads):
                        refused.add(one.prefix, actions)
            elif any(refused.meets(glob.prefix, actions) for glob in globs) and not any(
                self._as_much(one, at) for one in whole
            ):
                found.add(at)
        self._found = frozenset(found)
        self._most = max((self._behind[at] for at in found), default=-1)

    def __contains__(self, at: object) -> bool:
        """Whether a rule is an exception."""
        return at in self._found

    def counts(self, at: int) -> bool:
        """Whether it matters to some exception what a rule looks for."""
        return at in self._allowing and self._behind[at] <= self._most

    def allows(self, at: int, after: Looks | None, before: Mapping[int, Looks]) -> bool:
        """Whether all that an exception allows after a move was allowed before it.

        ``after`` is what it looks for then, and ``before`` what each rule looked for.
        """
        if not after:
            return True
        had: Looks = frozenset[tuple[Part, ...]]().union(
            *(looks for one, looks in before.items() if self.vouches(one, at))
        )
        return _ALL in had or after <= had

    def vouches(self, one: int, at: int) -> bool:
        """Whether what another rule allows is allowed though the exception be none."""
        return one in self._allowing and self._as_much(one, at)

    def _as_much(self, one: int, at: int) -> bool:
        return self._behind[one] <= self._behind[at] and self._actions[one] >= self._actions[at]


def _actions(rule: Rule) -> frozenset[str]:
    return frozenset(one for one in _FILES if any(covers(pattern, one) for pattern in rule.actions))


class _Refused:
    """What is refused somewhere in a directory, around it, or in it."""

    def __init__(self, where: Callable[[str], str]) -> None:
        self._where = where
        self._in: dict[str, set[str]] = {}
        self._above: dict[str, set[str]] = {}
        self._places: dict[str, set[str]] = {}

    def add(self, prefix: str, actions: frozenset[str]) -> None:
        self._in.setdefault(prefix, set()).update(actions)
        for place in ancestors(prefix, len(prefix)):
            self._above.setdefault(place, set()).update(actions)
        if place := self._where(prefix):
            self._places.setdefault(place, set()).update(actions)

    def meets(self, prefix: str, actions: frozenset[str]) -> bool:
        if not self._above.get(prefix, set()).isdisjoint(actions):
            return True
        around = (self._in.get(place, set()) for place in ancestors(prefix, len(prefix)))
        if any(not known.isdisjoint(actions) for known in around):
            return True
        place = self._where(prefix)
        return bool(place) and any(
            one != place and not known.isdisjoint(actions) for one, known in self._places.items()
        )
