"""What a rename would carry past a rule that denies by place.

A directory takes everything in it along.  Moving ``.git`` aside, writing
``hooks`` in it and moving it back would get round a rule on ``.git/hooks``;
moving a directory out of ``src`` would get round one on ``src/**/*.pem``.  So a
move is only harmless if, below both of its ends, every denying rule looks for
the same things: then what is denied before is denied after, and the reverse.
A Unix socket is reached only by a rule that allows its path, so nothing may move to
where such rules look for what they did not look for before.  Nor to where a rule allows some of
what a later one denies (:mod:`~safeclaw.policies.spared`), which it did not allow before: moving
``certs`` to ``site-packages`` would get what lies in it past a rule on ``*.pem`` that those are
spared.  And where a denying rule spells the way to what it looks for, no symbolic link may come
to stand: what is made where it leads would be found by the name that is denied.

What the globs look for below a place is the state of an automaton that has read
the place's components, all globs at once.  It is made as far as it is needed,
and remembered: a rename costs the same however many rules deny.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from safeclaw.policies.buckets import covers
from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import Part, PathGlob, Word, led, path_globs
from safeclaw.policies.index import Prefixes, ancestors
from safeclaw.policies.spared import Spared

#: What can be done to a socket by any of its names.
REACHES = ("network.connect", "network.send")
#: How many directories, and how many states, are remembered; then all are forgotten.
_REMEMBERED = 1024


class Moves:
    """The denying path rules of a policy, what they are spared, and what no rule can open.

    And those that open sockets.
    """

    def __init__(
        self,
        rules: Sequence[Rule],
        kept: Iterable[str],
        *,
        workspace: str,
        home: str,
        leads: Mapping[str, str],
    ) -> None:
        self._kept = Prefixes(dict.fromkeys(kept))
        prefixes: dict[str, int | None] = {}
        opened: dict[str, int | None] = {}
        sparing: dict[str, int | None] = {}
        granting: set[int] = set()
        self._spared = Spared(rules, workspace=workspace, home=home, leads=leads)
        globs: list[tuple[int, PathGlob]] = []
        for at, rule in enumerate(rules):
            known: list[dict[str, int | None]] = [prefixes]
            if rule.effect is Effect.ALLOW:
                known = []
                if any(covers(one, action) for one in rule.actions for action in REACHES):
                    known.append(opened)
                    granting.add(at)
                if at in self._spared:
                    known.append(sparing)
                if not known and not self._spared.counts(at):
                    continue
            for text in rule.paths:
                for written in path_globs(text, workspace=workspace, home=home):
                    for glob in led(written, leads):
                        for one in known:
                            one.setdefault(glob.prefix, at)
                        globs.append((at, glob))
        self._prefixes = Prefixes(prefixes)
        self._opened = Prefixes(opened)
        self._sparing = Prefixes(sparing)
        self._refusing = frozenset(
            at for at, rule in enumerate(rules) if rule.effect is not Effect.ALLOW
        )
        self._granting = frozenset(granting)
        self._looks = _Looks(globs)

    def obstacle(self, path: str, to: str) -> tuple[str, int | None] | None:
        """Return what forbids the move: a path or place, and its rule (None: protected)."""
        # What is protected comes first: observation lets through what only a rule forbids.
        for prefixes in (self._kept, self._prefixes):
            for end in (path, to):
                below = prefixes.below(end)
                if below is not None:
                    return below
        # a rule on one file alone is not about what is carried to it
        below = self._opened.below(to) or self._sparing.below(f"{to}/")
        if below is not None:
            return below
        before, after = self._looks.below(path), self._looks.below(to)
        if before is after:
            return None
        found, other = self._looks.by_rule(before), self._looks.by_rule(after)
        had = frozenset[tuple[Part, ...]]().union(*(found.get(at, ()) for at in self._granting))
        differing = {at for at in found.keys() | other.keys() if found.get(at) != other.get(at)}
        forbidding = {
            at
            for at in differing
            if at in self._refusing
            or (at in self._granting and not other.get(at, had) <= had)
            or (at in self._spared and not self._spared.allows(at, other.get(at), found))
        }
        return (path, min(forbidding)) if forbidding else None

    def link_obstacle(self, path: str) -> tuple[str, int | None] | None:
        """Return what forbids a symbolic link at ``path``: a path or place, and its rule.

        It is what a rule names below, before its first wildcard or by the link's own name: the
        rule looks for it here, and it would be where the link leads.
        """
        for prefixes in (self._kept, self._prefixes):
            below = prefixes.below(path)
            if below is not None:
                return below
        spelled = self._looks.spelled(path) & self._refusing
        return (path, min(spelled)) if spelled else None


#: Where a glob is: its number, and the part that it wants next.
_Position = tuple[int, int]


class _State:
    """Where all globs are at a place, and where they go from there."""

    __slots__ = ("named", "positions", "stay", "wild")

    def __init__(self, positions: frozenset[_Position]) -> None:
        self.positions = positions
        #: Filled when somebody goes on from here: what holds whatever the next name is, what a
        #: name leads to, and what a wildcard that takes the name leads to.
        self.stay: frozenset[_Position] | None = None
        self.named: dict[str, frozenset[_Position]] = {}
        self.wild: list[tuple[Word, frozenset[_Position]]] = []


class _Looks:
    """What globs still look for below a place."""

    def __init__(self, globs: list[tuple[int, PathGlob]]) -> None:
        self._rules = [at for at, _ in globs]
        self._parts = [glob.rest for _, glob in globs]
        self._starting: dict[str, frozenset[_Position]] = {}
        for number, (_, glob) in enumerate(globs):
            known = self._starting.get(glob.prefix, frozenset())
            self._starting[glob.prefix] = known | self._at(number, 0)
        self._states: dict[frozenset[_Position], _State] = {}
        self._places: dict[str, _State] = {}

    def by_rule(self, state: _State) -> dict[int, frozenset[tuple[Part, ...]]]:
        """Return what is looked for, by rule."""
        found: dict[int, frozenset[tuple[Part, ...]]] = {}
        for number, part in state.positions:
            at = self._rules[number]
            found[at] = found.get(at, frozenset()) | {self._parts[number][part:]}
        return found

    def spelled(self, path: str) -> set[int]:
        """Return the rules that spell a place's own name, and look for something below it."""
        name = path.rpartition("/")[2]
        return {
            self._rules[number]
            for number, part in self.below(path).positions
            if part and self._parts[number][part - 1] == name
        }

    def below(self, path: str) -> _State:
        """Return where the globs are at a place; the same object where they are the same."""
        parent = path.rpartition("/")[0]
        return self._next(self._directory(parent), path)

    def _directory(self, path: str) -> _State:
        known = self._places.get(path)
        if known is not None:
            return known
        state = self._state(self._starting.get("/", frozenset()))
        for place in ancestors(path, len(path)):
            if place not in ("", "/"):
                state = self._next(state, place)
        if len(self._places) >= _REMEMBERED:
            self._places.clear()
        self._places[path] = state
        return state

    def _next(self, state: _State, place: str) -> _State:
        """Return where the globs are at ``place``, being in ``state`` at its parent."""
        if state.stay is None:
            self._prepare(state)
        name = place.rpartition("/")[2]
        found = state.stay or frozenset()
        found |= state.named.get(name, frozenset())
        for word, leads in state.wild:
            if word.match(name):
                found |= leads
        return self._state(found | self._starting.get(place, frozenset()))

    def _prepare(self, state: _State) -> None:
        stay: frozenset[_Position] = frozenset()
        for number, at in state.positions:
            part = self._parts[number][at]
            if part is None:
                stay |= self._at(number, at)
                continue
            leads = self._at(number, at + 1)
            if isinstance(part, str):
                state.named[part] = state.named.get(part, frozenset()) | leads
            else:
                state.wild.append((part, leads))
        # last: it says that the rest is there, whichever thread looks
        state.stay = stay

    def _at(self, number: int, at: int) -> frozenset[_Position]:
        """Return a position and those that a ``**`` standing for nothing leads to.

        A glob that ends there looks for nothing below, and is dropped.
        """
        parts = self._parts[number]
        found: set[_Position] = set()
        while at < len(parts):
            found.add((number, at))
            if parts[at] is not None:
                break
            at += 1
        return frozenset(found)

    def _state(self, positions: frozenset[_Position]) -> _State:
        known = self._states.get(positions)
        if known is None:
            if len(self._states) >= _REMEMBERED:
                self._states.clear()
                self._places.clear()
            known = self._states.setdefault(positions, _State(positions))
        return known
