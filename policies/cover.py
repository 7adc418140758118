"""Which attempts a rule can match, as far as it can be told without any attempt.

A rule is taken apart into :class:`Atom`: one action with one condition.  ``included``
and ``disjoint`` say True only when that is so for every workspace, home and attempt;
False means that it is not, or that it cannot be told.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from safeclaw.policies import glob, network
from safeclaw.policies.buckets import covers
from safeclaw.policies.command import Arguments, CommandGlob, bare_name, command_globs
from safeclaw.policies.document import Effect, PortRange, Rule
from safeclaw.policies.glob import Part, PathGlob, Word
from safeclaw.policies.network import Host

#: Stand for the places that differ from session to session.
WORKSPACE, HOME = "/safeclaw-workspace", "/safeclaw-home"
INTERPRETER = "/safeclaw-interpreter"
_LEVEL = {Effect.DENY: 0, Effect.ASK: 1, Effect.ALLOW: 2}


class Place(msgspec.Struct, frozen=True):
    """A path glob: what it stands in ("/", or one of the places above), and its parts."""

    base: str
    parts: tuple[Part, ...]

    @property
    def everywhere(self) -> bool:
        """Whether every path matches."""
        return self.base == "/" and self.parts == (None,)


class Command(msgspec.Struct, frozen=True):
    """A program by name or by place, and what its arguments must look like."""

    name: Word | None
    place: Place | None
    arguments: Arguments


class Peer(msgspec.Struct, frozen=True):
    """The other end of a connection."""

    host: Host
    port: PortRange | None
    protocols: tuple[str, ...]


class Atom(msgspec.Struct, frozen=True):
    """One action and one condition (None: any) of the rule at ``at``."""

    at: int
    effect: Effect
    action: str
    condition: Place | Command | Peer | None

    @property
    def level(self) -> int:
        """How much it lets through: 0 deny, 1 ask, 2 allow."""
        return _LEVEL[self.effect]


class World(msgspec.Struct, frozen=True):
    """What the matching of one policy's rules depends on besides the rule.

    ``bare`` are the program names that its rules name, ``resolved`` the host names that
    are looked up for it.
    """

    bare: frozenset[str]
    resolved: frozenset[str]


def world(rules: tuple[Rule, ...], resolved: frozenset[str]) -> World:
    """Return the world of a policy's rules."""
    names = (bare_name(text) for rule in rules for text in rule.commands)
    return World(frozenset(name for name in names if name is not None), resolved)


def atoms(at: int, rule: Rule) -> Iterator[Atom]:
    """Take a rule apart."""
    conditions: list[Place | Command | Peer | None] = []
    runtime = rule.id == "runtime:interpreter"
    for text in rule.paths:
        for one in glob.path_globs(text, workspace=WORKSPACE, home=HOME):
            conditions.append(_place(text, one, INTERPRETER if runtime else None))
    for text in rule.commands:
        for command in command_globs(text, workspace=WORKSPACE, home=HOME):
            conditions.append(_command(text, command))
    if rule.hosts or rule.ports or rule.protocols:
        hosts = [host for text in rule.hosts or ("*",) for host in network.hosts(text)]
        ports: tuple[PortRange | None, ...] = rule.ports or (None,)
        conditions += [Peer(host, port, rule.protocols) for host in hosts for port in ports]
    if rule.unconditional:
        conditions.append(None)
    for action in rule.actions:
        for condition in conditions:
            yield Atom(at, rule.effect, action.removesuffix(".*"), condition)


def _place(text: str, found: PathGlob, base: str | None) -> Place:
    literal = tuple(name for name in found.prefix.split("/") if name)
    if base is None:
        base = "/" if text.startswith("/") else HOME if text.startswith("~") else WORKSPACE
        # "{/a,b}" stands in two places at once: in none that anything can be said of
        if text.startswith("{"):
            base = text
    parts: tuple[Part, ...] = (*literal, *found.rest)
    return Place(base, parts[1:] if base in (WORKSPACE, HOME) else parts)


def _command(text: str, found: CommandGlob) -> Command:
    place = None if found.path is None else _place(text.lstrip(" \t'\""), found.path, None)
    return Command(found.name, place, found.arguments)


# ---- one within the other


def included(one: Atom, within: World, other: Atom, outer: World, *, trust: bool) -> bool:
    """Whether whatever ``one`` matches is matched by ``other``, each in its own policy.

    ``trust`` says that what the agent may write under the other's policy it may write
    under the one's (for programs by name, and where programs can be run from).
    """
    if not covers(other.action, one.action):
        return False
    match other.condition:
        case None:
            return _in_any(one, other)
        case Place() as place:
            return isinstance(one.condition, Place) and place_included(one.condition, place)
        case Command() as command:
            return isinstance(one.condition, Command) and _in_command(
                one, one.condition, within, other, command, outer, trust
            )
        case Peer() as peer:
            return isinstance(one.condition, Peer) and _in_peer(
                one, one.condition, within, other, peer, outer
            )


def _in_any(one: Atom, other: Atom) -> bool:
    if other.effect is not Effect.ALLOW or one.action.startswith(("file", "shell", "session")):
        return True
    # An allow without conditions opens no Unix socket by path, and nothing special.
    match one.condition:
        case Place():
            return False
        case Peer(host):
            named = host.network is not None and network.within_special(host.network)
            return one.effect is Effect.ALLOW and not named
        case _:
            return one.effect is Effect.ALLOW


def place_included(one: Place, other: Place) -> bool:
    """Whether every path that one matches is matched by the other."""
    if other.everywhere:
        return True
    return one.base == other.base and _parts_included(one.parts, other.parts)


def _parts_included(one: tuple[Part, ...], other: tuple[Part, ...]) -> bool:
    known: dict[tuple[int, int], bool] = {}

    def within(a: int, b: int) -> bool:
        key = (a, b)
        if key not in known:
            known[key] = False  # it only ever asks for what is shorter
            known[key] = step(a, b)
        return known[key]

    def step(a: int, b: int) -> bool:
        if b == len(other):
            return a == len(one)
        if other[b] is None:
            return within(a, b + 1) or (a < len(one) and within(a + 1, b))
        if a == len(one):
            return False
        mine, theirs = one[a], other[b]
        return (
            mine is not None
            and theirs is not None
            and part_included(mine, theirs)
            and within(a + 1, b + 1)
        )

    return within(0, 0)


def part_included(one: str | Word, other: str | Word) -> bool:
    """Whether a part that takes one component takes whatever the other takes."""
    if isinstance(one, str):
        return glob.match_part(other, one)
    return isinstance(other, Word) and word_included(one, other)


def word_included(one: Word, other: Word) -> bool:
    """Whether every text that one matches is matched by the other."""
    if one.literal is not None:
        return other.match(one.literal)
    return one == other or other.any


def _arguments_included(one: Arguments, other: Arguments) -> bool:
    if len(other.words) > len(one.words):
        return False
    if not other.open_ended and (one.open_ended or len(one.words) != len(other.words)):
        return False
    return all(word_included(a, b) for a, b in zip(one.words, other.words, strict=False))


def _in_command(
    one: Atom,
    mine: Command,
    within: World,
    other: Atom,
    theirs: Command,
    outer: World,
    trust: bool,
) -> bool:
    if not _arguments_included(mine.arguments, theirs.arguments):
        return False
    if theirs.place is not None:
        if mine.place is not None:
            return place_included(mine.place, theirs.place)
        return theirs.place.everywhere
    if theirs.name is None or mine.name is None:
        return False
    if one.effect is Effect.DENY:
        # A denial takes more names for a program than its own: only the same does, too.
        return other.effect is Effect.DENY and mine.name == theirs.name
    literal = mine.name.literal
    if other.effect is Effect.DENY:
        return mine.name == theirs.name or (literal is not None and theirs.name.match(literal))
    if not trust:
        return False
    if theirs.name.any:
        return True
    if literal is None:
        return mine.name == theirs.name and within.bare <= outer.bare
    return theirs.name.match(literal) and (theirs.name.literal is not None or literal in outer.bare)


def _in_peer(one: Atom, mine: Peer, within: World, other: Atom, theirs: Peer, outer: World) -> bool:
    if theirs.port is not None and not (
        mine.port is not None
        and theirs.port.low <= mine.port.low
        and mine.port.high <= theirs.port.high
    ):
        return False
    if theirs.protocols and not (mine.protocols and {*mine.protocols} <= {*theirs.protocols}):
        return False
    names = mine.host.network is None and not mine.host.own
    some = theirs.port is not None or bool(theirs.protocols)
    if names and some and other.effect is Effect.DENY and one.effect is not Effect.DENY:
        return False  # such a denial leaves the name to be looked up
    special = theirs.host.network is not None and network.within_special(theirs.host.network)
    if other.effect is Effect.ALLOW and not special:
        # An allow reaches what is special only by naming it; the others reach it anyway.
        if one.effect is not Effect.ALLOW:
            return False
        if mine.host.network is not None and network.within_special(mine.host.network):
            return False
    return _host_included(one, mine.host, within, other, theirs.host, outer)


def _host_included(
    one: Atom, mine: Host, within: World, other: Atom, theirs: Host, outer: World
) -> bool:
    if theirs == Host():
        return True
    if theirs.own or mine.own:
        return theirs.own and mine.own
    if theirs.network is not None:
        return mine.network is not None and _subnet(mine.network, theirs.network)
    if mine.name is None or theirs.name is None or not _name_included(mine.name, theirs.name):
        return False
    known, there = _known(mine.name, within), _known(theirs.name, outer)
    if not there and other.effect is not Effect.ALLOW:
        return True  # unresolved: it refuses wherever it might apply
    return known <= there if one.effect is Effect.ALLOW else known == there


def _subnet(one: network.Network, other: network.Network) -> bool:
    return one.version == other.version and one.subnet_of(other)  # type: ignore[arg-type]


def _name_included(one: str, other: str) -> bool:
    return one == other or (other.startswith("*.") and one.removeprefix("*").endswith(other[1:]))


def _known(name: str, where: World) -> frozenset[str]:
    return frozenset(each for each in where.resolved if _name_included(each, name))


# ---- nothing in common


def disjoint(one: Atom, other: Atom) -> bool:
    """Whether nothing is matched by both; ``other`` is the one that lets through less."""
    if not covers(one.action, other.action) and not covers(other.action, one.action):
        return True
    a, b = one.condition, other.condition
    if a is None or b is None:
        return False
    match a, b:
        case Place(), Place():
            return place_disjoint(a, b)
        case Command(), Command():
            return a.place is not None and b.place is not None and place_disjoint(a.place, b.place)
        case Peer(), Peer():
            return _peers_disjoint(a, b, denied=other.effect is Effect.DENY)
        case _:
            return True


def place_disjoint(one: Place, other: Place) -> bool:
    """Whether no path is matched by both."""
    if one.base != other.base:
        return False
    if None not in one.parts and None not in other.parts and len(one.parts) != len(other.parts):
        return True
    return _differ(one.parts, other.parts) or _differ(one.parts[::-1], other.parts[::-1])


def _differ(one: tuple[Part, ...], other: tuple[Part, ...]) -> bool:
    """Whether two components that must be the same cannot be; up to the first ``**``."""
    for a, b in zip(one, other, strict=False):
        if a is None or b is None:
            return False
        if isinstance(a, str) and not glob.match_part(b, a):
            return True
        if isinstance(b, str) and not glob.match_part(a, b):
            return True
    return False


def _peers_disjoint(one: Peer, other: Peer, *, denied: bool) -> bool:
    a, b = one.host.network, other.host.network
    if a is not None and b is not None and not _meet(a, b):
        return True
    # Names are looked up without a port: only a denial of some ports leaves them out.
    if not denied:
        return False
    if one.protocols and other.protocols and not {*one.protocols} & {*other.protocols}:
        return True
    return (
        one.port is not None
        and other.port is not None
        and (one.port.high < other.port.low or other.port.high < one.port.low)
    )


def _meet(one: network.Network, other: network.Network) -> bool:
    """Whether an address lies in both, or in one and as what it is translated to in the other."""
    if one.version != other.version:
        return network.may_translate(one) or network.may_translate(other)
    return _subnet(one, other) or _subnet(other, one)
