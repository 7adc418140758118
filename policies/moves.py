"""What a rename would carry past a rule that denies by place.

A directory takes everything in it along.  Moving ``.git`` aside, writing
``hooks`` in it and moving it back would get round a rule on ``.git/hooks``;
moving a directory out of ``src`` would get round one on ``src/**/*.pem``.  So a
move is only harmless if, below both of its ends, every denying rule looks for
the same things: then what is denied before is denied after, and the reverse.
"""

from __future__ import annotations

from collections.abc import Iterable

from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import Part, PathGlob, match_part, path_globs
from safeclaw.policies.index import Prefixes, ancestors

Remaining = frozenset[tuple[Part, ...]]


class Moves:
    """The denying path rules of a policy, and what no rule can open."""

    def __init__(
        self, rules: Iterable[Rule], kept: Iterable[str], *, workspace: str, home: str
    ) -> None:
        self._kept = Prefixes(dict.fromkeys(kept))
        prefixes: dict[str, int | None] = {}
        self._globs: dict[str, list[tuple[int, PathGlob]]] = {}
        for at, rule in enumerate(rules):
            if rule.effect is Effect.ALLOW:
                continue
            for text in rule.paths:
                for glob in path_globs(text, workspace=workspace, home=home):
                    prefixes.setdefault(glob.prefix, at)
                    self._globs.setdefault(glob.prefix, []).append((at, glob))
        self._prefixes = Prefixes(prefixes)
        self._deepest = max((prefix.count("/") for prefix in self._globs), default=0)

    def obstacle(self, path: str, to: str) -> tuple[str, int | None] | None:
        """Return what forbids the move: a path or place, and its rule (None: protected)."""
        # What is protected comes first: observation lets through what only a rule forbids.
        for prefixes in (self._kept, self._prefixes):
            for end in (path, to):
                below = prefixes.below(end)
                if below is not None:
                    return below
        before, after = self._remaining(path), self._remaining(to)
        if before == after:
            return None
        differing = {at for at in before.keys() | after.keys() if before.get(at) != after.get(at)}
        return path, min(differing)

    def _remaining(self, path: str) -> dict[int, Remaining]:
        """Return, by rule, what its globs still look for below ``path``."""
        found: dict[int, Remaining] = {}
        for directory in ancestors(path, self._deepest):
            for at, glob in self._globs.get(directory, ()):
                left = _left(glob, path)
                if left:
                    found[at] = found.get(at, frozenset()) | left
        return found


def _left(glob: PathGlob, path: str) -> Remaining:
    parts = glob.rest
    below = path[len(glob.prefix) if glob.prefix != "/" else 0 :].strip("/")
    states = _skip({0}, parts)
    for name in below.split("/") if below else ():
        states = _skip(
            {
                state if parts[state] is None else state + 1
                for state in states
                if state < len(parts) and (parts[state] is None or match_part(parts[state], name))
            },
            parts,
        )
        if not states:
            break
    # A glob that ends exactly here looks for nothing below.
    return frozenset(parts[state:] for state in states if state < len(parts))


def _skip(states: set[int], parts: tuple[Part, ...]) -> set[int]:
    """Add the states that a ``**`` standing for nothing leads to."""
    found = set(states)
    for state in sorted(states):
        while state < len(parts) and parts[state] is None:
            state += 1
            found.add(state)
    return found
