"""Two policies compared in meaning, by their rules alone.

``compare`` finds what the new policy may let through that the old one did not, and the
reverse.  What it promises is one-sided: when it finds nothing wider, then no attempt is
allowed, or put before a person, that the old policy treated more strictly.  What it
finds may turn out to be nothing: it tells what it can prove.

It holds for every workspace, home and attempt, and the same world for both policies:
the same protected paths, the same answers to names, and programs counted only where the
walls let them be run from.  It takes for granted that the bare program names of the rules
lead to the system's directories, and that the workspace and the home lie elsewhere.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from safeclaw.policies import cover, render
from safeclaw.policies.buckets import covers
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.cover import Atom, Command, Place
from safeclaw.policies.document import Assurance, Effect, Environment, Mode, Policy, Rule
from safeclaw.policies.moves import REACHES
from safeclaw.policies.reach import SYSTEM, names_to_resolve
from safeclaw.policies.spared import Spared

#: How many rules are held against each other before it is given up.
_MOST = 3_000_000
_WRITES = (
    "file.write.create", "file.write.modify", "file.write.rename", "file.write.link",
)  # fmt: skip
#: By which a file comes to be found by another name: a link is made by two of them.
_NAMES_OTHERS = ("file.write.create", "file.write.rename", "file.write.link")
_EVERYWHERE = Place("/", (None,))
_NOWHERE = Context(cover.WORKSPACE, cover.HOME, interpreter=(cover.INTERPRETER,))


class Finding(msgspec.Struct, frozen=True):
    """Something that may be let through: the rule or setting, where it stands, and why."""

    what: str
    place: str
    why: str


class Comparison(msgspec.Struct, frozen=True):
    """What may have become wider, and what narrower."""

    wider: tuple[Finding, ...]
    narrower: tuple[Finding, ...]

    @property
    def relation(self) -> str:
        """Return equal, narrower, wider, or different (both ways)."""
        if self.wider:
            return "different" if self.narrower else "wider"
        return "narrower" if self.narrower else "equal"


def compare(old: Policy, new: Policy, runtime: tuple[Rule, ...] | None = None) -> Comparison:
    """Return how ``new`` differs from ``old``; ``runtime`` as for ``compile_policy``."""
    before, after = _Side(old, runtime), _Side(new, runtime)
    wider, narrower = _exceeding(after, before), _exceeding(before, after)
    return Comparison(tuple(dict.fromkeys(wider)), tuple(dict.fromkeys(narrower)))


class _Side:
    """One policy, taken apart."""

    def __init__(self, policy: Policy, runtime: tuple[Rule, ...] | None) -> None:
        self.policy = policy
        self.rules = compile_policy(policy, _NOWHERE, runtime).rules
        self.world = cover.world(self.rules, frozenset(names_to_resolve(policy.rules)))
        self.atoms = [atom for at, rule in enumerate(self.rules) for atom in cover.atoms(at, rule)]
        #: The exceptions that are ones wherever the workspace and the home lie, and that may be.
        self.spared, self.perhaps_spared = (
            Spared(
                self.rules,
                workspace=cover.WORKSPACE,
                home=cover.HOME,
                leads={},
                where=where,
            )
            for where in (_nowhere, _where)
        )

    def about(self, action: str) -> Iterator[Atom]:
        for atom in self.atoms:
            if covers(atom.action, action) or covers(action, atom.action):
                yield atom

    def refusing(self, at: int) -> Iterator[Rule]:
        """Yield the rules after one that refuse by place."""
        for rule in self.rules[at + 1 :]:
            if rule.effect is not Effect.ALLOW and rule.paths:
                yield rule

    def opens(self, action: str) -> bool:
        return any(atom.level for atom in self.about(action))


class _TooMuchError(Exception):
    pass


def _exceeding(new: _Side, old: _Side) -> Iterator[Finding]:
    """Yield what the new side may let through that the old one did not."""
    yield from _settings(new.policy, old.policy)
    if old.policy.mode is Mode.OBSERVE and new.policy.mode is Mode.ENFORCE:
        return  # nothing but what is protected was refused
    proof = _Proof(new, old)
    try:
        yield from proof.rules()
    except _TooMuchError:
        yield Finding("the rules", "", "they are too many to be compared")


class _Proof:
    """The attempt to show that the new side lets through nothing more.

    INVARIANT: a rule that decides in the new policy is within one of the old that lets
    through as much; what stands before that one and lets through less has nothing in
    common with it, or is within a rule that stands before it in the new policy, which
    would then have decided.
    """

    def __init__(self, new: _Side, old: _Side, left: int = _MOST, *, files: bool = False) -> None:
        self._new, self._old = new, old
        self._left = left
        #: Only files are looked at: what is known of programs rests on that.
        self._only_files = files
        self._carried: dict[int, int] = {}
        self._files: dict[bool, bool] = {}
        self._apart: bool | None = None

    def rules(self) -> Iterator[Finding]:
        for atom in self._new.atoms:
            if atom.level and (why := self._obstacle(atom)) is not None:
                rule = self._new.rules[atom.at]
                yield _finding(rule, why)
        if self._new.opens("shell.execute"):
            yield from self._interpreters()
        if any(self._new.opens(action) for action in _NAMES_OTHERS):
            yield from self._moves()
        if self._new.opens("file.write.rename") or self._new.opens("file.write.link"):
            yield from self._reached()

    # ---- the order of rules

    def _obstacle(self, atom: Atom) -> str | None:
        """Return why it cannot be shown that an atom lets through nothing more."""
        best: str | None = None
        for candidate in self._old.atoms:
            if candidate.level < atom.level or not self._within(atom, candidate):
                continue
            blocking = self._blocking(atom, candidate)
            if blocking is None:
                return None
            best = best or f"some of it was decided by {_name(blocking)}"
        if any(self._dead(atom, early) for early in self._new.atoms if early.at < atom.at):
            return None
        return best or "no rule let through as much"

    def _dead(self, atom: Atom, early: Atom) -> bool:
        self._count()
        side = self._new.world
        return cover.included(atom, side, early, side, trust=True)

    def _blocking(self, atom: Atom, candidate: Atom) -> Rule | None:
        for position, early in enumerate(self._old.atoms):
            if early.at >= candidate.at:
                return None
            if early.level >= atom.level:
                continue
            self._count()
            if cover.disjoint(atom, early):
                continue
            if self._carrier(position, early) >= atom.at:
                return self._old.rules[early.at]
        return None

    def _carrier(self, position: int, early: Atom) -> int:
        """Return the first rule of the new side that takes all that ``early`` takes."""
        known = self._carried.get(position)
        if known is None:
            trust = self._trust(reverse=True) if isinstance(early.condition, Command) else True
            known = len(self._new.rules)
            for atom in self._new.atoms:
                self._count()
                if cover.included(early, self._old.world, atom, self._new.world, trust=trust):
                    known = atom.at
                    break
            self._carried[position] = known
        return known

    def _within(self, atom: Atom, candidate: Atom) -> bool:
        self._count()
        programs = isinstance(atom.condition, Command) and isinstance(candidate.condition, Command)
        trust = self._trust(reverse=False) if programs else True
        return cover.included(atom, self._new.world, candidate, self._old.world, trust=trust)

    def _count(self) -> None:
        self._left -= 1
        if self._left < 0:
            raise _TooMuchError

    # ---- programs by name count where the agent cannot write

    def _trust(self, *, reverse: bool) -> bool:
        """Whether what could be written can still be (``reverse``: the other way round)."""
        if self._only_files:
            return False
        if not reverse and self._apart is None:
            self._apart = _apart(self._old, self._new)
        if not reverse and self._apart:
            return True
        if reverse not in self._files:
            new, old = (self._new, self._old) if reverse else (self._old, self._new)
            proof = _Proof(new, old, self._left, files=True)
            self._files[reverse] = all(
                proof._obstacle(atom) is None
                for atom in new.atoms
                if atom.level and not isinstance(atom.condition, Command) and _writes(atom)
            )
            self._left = proof._left
        return self._files[reverse]

    # ---- what is not decided by the first rule alone

    def _interpreters(self) -> Iterator[Finding]:
        """A rule that refuses a program by its command refuses scripts for it, too."""
        final = min(
            (
                atom.at
                for atom in self._new.about("shell.execute")
                if atom.effect is not Effect.ALLOW and not _names(self._new.rules[atom.at])
            ),
            default=len(self._new.rules),
        )
        for atom in self._old.about("shell.execute"):
            rule = self._old.rules[atom.at]
            if not _names(rule):
                continue
            trust = self._trust(reverse=True)
            kept = any(
                cover.included(atom, self._old.world, other, self._new.world, trust=trust)
                for other in self._new.atoms
                if other.at < final
                and other.level <= atom.level
                and _names(self._new.rules[other.at])
            )
            if not kept:
                yield _finding(rule, "it kept scripts from an interpreter, and is no more")

    def _moves(self) -> Iterator[Finding]:
        """No move and no link may carry a file past a rule that refuses by place."""
        kept = [rule for rule in self._new.rules if rule.effect is not Effect.ALLOW and rule.paths]
        for rule in self._old.rules:
            if rule.effect is Effect.ALLOW or not rule.paths:
                continue
            if not any(_holds_back(other, rule) for other in kept):
                yield _finding(rule, "it kept files from being moved, and is no more")
        for at, rule in enumerate(self._old.rules):
            if at in self._old.perhaps_spared and not any(
                self._spares(other, at) for other in range(len(self._new.rules))
            ):
                yield _finding(rule, "it kept files from being moved there, and is no more")

        yield from self._asked(kept)

    def _asked(self, kept: list[Rule]) -> Iterator[Finding]:
        """A move that a rule which allows kept from being made may be asked about."""
        doors = any(
            rule.paths and any(covers(one, action) for one in rule.actions for action in REACHES)
            for rule in self._old.rules
            if rule.effect is Effect.ALLOW
        )
        if not doors and not any(
            at in self._old.perhaps_spared for at in range(len(self._old.rules))
        ):
            return
        refused = [rule for rule in self._old.rules if rule.effect is not Effect.ALLOW]
        for rule in kept:
            if rule.effect is Effect.ASK and not any(
                {*one.paths} == {*rule.paths} and one.effect is Effect.ASK for one in refused
            ):
                yield _finding(rule, "it asks about moves that were refused")

    def _spares(self, new: int, old: int) -> bool:
        """Whether an exception of the new side keeps files from where one of the old did."""
        self._count()
        rule, other = self._new.rules[new], self._old.rules[old]
        if not _same_places(rule, other):
            return False
        # one that is an exception in some places only is so in the same, if all else refuses there
        if new not in self._new.spared and not (
            new in self._new.perhaps_spared
            and all(
                any(_same_places(one, each) for one in self._new.refusing(new))
                for each in self._old.refusing(old)
            )
        ):
            return False
        vouched = [
            {*one.paths}
            for at, one in enumerate(self._old.rules)
            if self._old.spared.vouches(at, old)
        ]
        return all(
            any({*one.paths} <= paths for paths in vouched)
            for at, one in enumerate(self._new.rules)
            if self._new.spared.vouches(at, new)
        )

    def _reached(self) -> Iterator[Finding]:
        """What a name opens as a socket has to be open by the old one, too, to be given it."""
        back = _Proof(self._old, self._new, self._left)
        for atom in self._old.atoms:
            where = _EVERYWHERE if atom.condition is None else atom.condition
            # without a condition an allow opens no socket by its path
            opened = atom.condition is not None or atom.effect is Effect.ASK
            if not atom.level or not opened or not isinstance(where, Place):
                continue
            for action in REACHES:
                # that it is open at all, if only for a question
                asked = Atom(atom.at, Effect.ASK, action, where)
                if covers(atom.action, action) and back._obstacle(asked) is not None:
                    rule = self._old.rules[atom.at]
                    yield _finding(
                        rule, "it kept files from being given such names, and is no more"
                    )
        self._left = back._left


def _same_places(new: Rule, old: Rule) -> bool:
    """Whether a rule is about the same places, and about as many actions."""
    return {*new.paths} == {*old.paths} and {*new.actions} >= {*old.actions}


def _nowhere(_: str) -> str:
    return ""


def _where(prefix: str) -> str:
    """Return where a directory is that a glob begins with; "": among the system's."""
    for place in (cover.WORKSPACE, cover.HOME):
        if prefix == place or prefix.startswith(f"{place}/"):
            return place
    return "" if any(f"{prefix}/".startswith(f"{place}/") for place in SYSTEM) else "/"


def _holds_back(new: Rule, old: Rule) -> bool:
    if {*new.paths} == {*old.paths}:
        return True
    return {*new.paths} >= {*old.paths} and all(
        text.startswith("**/") and "/" not in text[3:] and "{" not in text for text in new.paths
    )


def _names(rule: Rule) -> bool:
    return rule.effect is not Effect.ALLOW and bool(rule.commands) and "*" not in rule.commands


def _writes(atom: Atom) -> bool:
    return any(covers(atom.action, one) or covers(one, atom.action) for one in _WRITES)


def _apart(old: _Side, new: _Side) -> bool:
    """Whether the old side let nothing be written where the new one runs programs from."""
    roots = [Place("/", tuple(path.strip("/").split("/"))) for path in SYSTEM]
    for atom in new.about("shell.execute"):
        if not atom.level:
            continue
        if not isinstance(atom.condition, Command):
            return False
        if atom.condition.place is not None:
            roots.append(atom.condition.place)
    for atom in old.atoms:
        if not atom.level or not _writes(atom) or isinstance(atom.condition, Command):
            continue
        if not isinstance(atom.condition, Place):
            if atom.condition is None:
                return False
            continue
        if not all(_unrelated(atom.condition, root) for root in roots):
            return False
    return True


def _unrelated(written: Place, root: Place) -> bool:
    """Whether nothing below one can lie below the other."""
    if written.base != root.base:
        # the workspace and the home are not among the system's directories
        inner = root if written.base != "/" else written
        places = (cover.WORKSPACE, cover.HOME)
        system = inner.base == "/" and bool(inner.parts) and f"/{inner.parts[0]}" in SYSTEM
        return system and (written.base in places or root.base in places)
    for one, other in zip(written.parts, root.parts, strict=False):
        if not isinstance(one, str) or not isinstance(other, str):
            return False
        if one != other:
            return True
    return False


def _settings(new: Policy, old: Policy) -> Iterator[Finding]:
    if new.mode is Mode.OBSERVE and old.mode is Mode.ENFORCE:
        yield Finding("mode: observe", "", "what is refused is let through")
    if new.assurance is not Assurance.STRICT and old.assurance is Assurance.STRICT:
        yield Finding("assurance: pipelined", "", "attempts do not wait for their records")
    for name in new.resources.__struct_fields__:
        mine: int | None = getattr(new.resources, name)
        theirs: int | None = getattr(old.resources, name)
        if mine != theirs and (mine is None or theirs is None or mine > theirs):
            yield Finding(f"resources: {name}", "", f"{theirs} was the limit, {mine} is")
    yield from _variables(new.environment, old.environment)
    lost = {*old.pseudonymise.paths, *old.pseudonymise.actions} - {
        *new.pseudonymise.paths,
        *new.pseudonymise.actions,
    }
    for text in sorted(lost):
        yield Finding(f"pseudonymise: {text}", "", "it is recorded in plain words")


def _variables(new: Environment, old: Environment) -> Iterator[Finding]:
    for name in new.inherit:
        if not _named(name, old.inherit):
            yield Finding(f"environment: pass {name}", "", "it was not passed on")
    if new.assign != old.assign:
        yield Finding("environment: set", "", "other values are set")
    for name in old.forbid:
        if not _named(name, new.forbid):
            yield Finding(f"environment: forbid {name}", "", "programs may be started with it")
    for name, value in old.pin:
        if (name, value) not in new.pin:
            yield Finding(f"environment: pin {name}", "", "programs may be started otherwise")
    for name, value in new.pin:
        if (name, value) not in old.pin and _named(name, old.forbid):
            yield Finding(f"environment: pin {name}", "", "no program was started with it")


def _named(name: str, names: tuple[str, ...]) -> bool:
    return any(name == one or (one.endswith("*") and name.startswith(one[:-1])) for one in names)


def _name(rule: Rule) -> str:
    return f"{rule.id} (line {rule.line})" if rule.line else rule.id


def _finding(rule: Rule, why: str) -> Finding:
    shown = msgspec.structs.replace(rule, reason="")
    text = " ".join(line.strip() for line in render.rule_of(shown)).removeprefix("- ")
    return Finding(text, _name(rule), why)
