"""Rules filed by action, then by what they look at.

A bucket holds the rules that apply to one action, indexed so that the first
match is found in time that does not depend on how many rules there are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from safeclaw.policies import network
from safeclaw.policies.command import Arguments, CommandGlob, command_globs
from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import Word, led, path_globs
from safeclaw.policies.index import PathIndex
from safeclaw.policies.model import AddressTarget, ProgramTarget
from safeclaw.policies.network import Address


def covers(pattern: str, action: str) -> bool:
    """Return whether an action pattern takes ``action``: itself, or what lies below it."""
    bare = pattern.removesuffix(".*")
    return bare in ("*", action) or action.startswith(bare + ".")


class Buckets:
    """The bucket of every action that some rule distinguishes, made when first asked for."""

    def __init__(
        self,
        rules: tuple[Rule, ...],
        workspace: str,
        home: str,
        addresses: tuple[tuple[str, tuple[str, ...]], ...],
        leads: Mapping[str, str],
    ) -> None:
        self._rules = rules
        self._leads = leads
        self._place = (workspace, home)
        self._addresses = dict(addresses)
        self._by_pattern: dict[str, list[int]] = {}
        for at, rule in enumerate(rules):
            for pattern in {one.removesuffix(".*") for one in rule.actions}:
                self._by_pattern.setdefault(pattern, []).append(at)
        self._made: dict[str, Bucket] = {}

    def of(self, action: str) -> Bucket:
        """Return the rules for ``action``."""
        known = self._made.get(action)
        if known is not None:
            return known
        # The longest pattern that covers the action stands for it, so that
        # made-up action names cannot fill the memory.
        key = action
        while key and key not in self._by_pattern:
            key = key.rpartition(".")[0]
        key = key or "*"
        bucket = self._made.get(key)
        if bucket is None:
            bucket = self._made[key] = self._make(key)
        return bucket

    def _make(self, action: str) -> Bucket:
        found = set(self._by_pattern.get("*", ()))
        while action:
            found.update(self._by_pattern.get(action, ()))
            action = action.rpartition(".")[0]
        bucket = Bucket(self._place, self._addresses, self._leads)
        for at in sorted(found):
            bucket.add(at, self._rules[at])
        return bucket


class Bucket:
    """The rules for one action, in their order."""

    def __init__(
        self,
        place: tuple[str, str],
        addresses: dict[str, tuple[str, ...]],
        leads: Mapping[str, str],
    ) -> None:
        self._workspace, self._home = place
        self._leads = leads
        self._hosts = _Hosts(addresses)
        self._paths: PathIndex[None] = PathIndex()
        self._programs = _Programs()
        self.always: int | None = None
        """The first rule without conditions."""
        self._always_refusing: int | None = None

    def add(self, at: int, rule: Rule) -> None:
        """File a rule; ``at`` must grow from call to call."""
        if rule.unconditional:
            self.always = at if self.always is None else self.always
            if rule.effect is not Effect.ALLOW and self._always_refusing is None:
                self._always_refusing = at
        if rule.unconditional or rule.hosts or rule.ports or rule.protocols:
            self._hosts.add(at, rule)
        # SAFETY: what a refusing rule names by a link is refused where that leads, too: it is
        # there that it is judged.  What is allowed must be named as what it is.
        leads: Mapping[str, str] = {} if rule.effect is Effect.ALLOW else self._leads
        for text in rule.paths:
            for glob in path_globs(text, workspace=self._workspace, home=self._home):
                for one in led(glob, leads):
                    self._paths.add(at, one, None)
        for text in rule.commands:
            for command in command_globs(text, workspace=self._workspace, home=self._home):
                self._programs.add(at, command, leads, denies=rule.effect is Effect.DENY)

    def path(self, path: str) -> int | None:
        """Return the first rule for a file."""
        found = self._paths.first(path)
        return _lower(self.always, None if found is None else found[0])

    def socket(self, path: str) -> int | None:
        """Return the first rule for a Unix socket: one that allows must name its path.

        An abstract name (``@name``) lives in the agent's own network namespace only.
        """
        if path.startswith("@"):
            return self._hosts.own("unix")
        found = self._paths.first(path)
        return _lower(self._always_refusing, None if found is None else found[0])

    def program(
        self,
        target: ProgramTarget,
        aliases: Sequence[str],
        trusted: Sequence[str],
        writable: Callable[[str], bool],
    ) -> int | None:
        """Return the first rule for a program; ``trusted`` aliases are enough to allow."""
        return self._programs.first(target, aliases, trusted, writable, self.always)

    def address(self, target: AddressTarget, address: Address) -> int | None:
        """Return the first rule for an address; ``address`` is the target's, parsed."""
        return self._hosts.first(target, address)

    def name(self, name: str) -> int | None:
        """Return the first rule that decides whether a name may be looked up."""
        return self._hosts.name(name)


def _lower(one: int | None, other: int | None) -> int | None:
    if one is None or other is None:
        return other if one is None else one
    return min(one, other)


def _base(path: str) -> str:
    return path[path.rfind("/") + 1 :]


class _Programs:
    """Command patterns by program name or path."""

    def __init__(self) -> None:
        self._named: dict[str, list[tuple[int, bool, Arguments]]] = {}
        self._globbed: list[tuple[int, bool, Word, Arguments]] = []
        self._paths: PathIndex[Arguments] = PathIndex()

    def add(self, at: int, command: CommandGlob, leads: Mapping[str, str], *, denies: bool) -> None:
        if command.path is not None:
            for one in led(command.path, leads):
                self._paths.add(at, one, command.arguments)
        elif command.name is not None and command.name.literal is not None:
            self._named.setdefault(command.name.literal, []).append((at, denies, command.arguments))
        elif command.name is not None:
            self._globbed.append((at, denies, command.name, command.arguments))

    def first(
        self,
        target: ProgramTarget,
        aliases: Sequence[str],
        trusted_aliases: Sequence[str],
        writable: Callable[[str], bool],
        best: int | None,
    ) -> int | None:
        arguments = target.argv[1:]
        for at, pattern in self._paths.all(target.program):
            if best is not None and at >= best:
                break
            if pattern.match(arguments):
                best = at
                break
        own = _base(target.program)
        called = _base(target.argv[0]) if target.argv else own
        # argv[0] is the agent's word: enough to refuse, never enough to allow.
        # A program that lies where a name of the policy leads may go by that
        # name if it is called so (one binary can be many programs).
        trusted = {own, *(name for name in trusted_aliases if name == called)}
        for name in dict.fromkeys((own, called, *aliases)):
            for at, denies, pattern in self._named.get(name, ()):
                if best is not None and at >= best:
                    break
                if not denies and (name not in trusted or writable(target.program)):
                    continue
                if pattern.match(arguments):
                    best = at
                    break
        for at, denies, word, pattern in self._globbed:
            if best is not None and at >= best:
                break
            names = (own, called) if denies else tuple(trusted)
            if not any(word.match(name) for name in names) or not pattern.match(arguments):
                continue
            if denies or not writable(target.program):
                best = at
                break
        return best


class _Hosts:
    """Address rules by network, narrowest look-ups by mask length, and by name."""

    def __init__(self, addresses: dict[str, tuple[str, ...]]) -> None:
        self._addresses = addresses
        self._anywhere: list[tuple[int, Rule]] = []
        self._own: list[tuple[int, Rule]] = []
        self._networks: dict[tuple[int, int, int], list[tuple[int, Rule, bool]]] = {}
        self._masks: set[tuple[int, int]] = set()
        # By name, wildcards by their ending with its dot.
        self._names: dict[str, list[tuple[int, Rule]]] = {}
        self._unresolved: list[tuple[int, Rule]] = []

    def add(self, at: int, rule: Rule) -> None:
        if not rule.hosts:
            self._anywhere.append((at, rule))
        for text in rule.hosts:
            for host in network.hosts(text):
                if host.network is not None:
                    self._file(at, rule, host.network, network.within_special(host.network))
                elif host.own:
                    self._own.append((at, rule))
                elif host.name is None:
                    self._anywhere.append((at, rule))
                else:
                    self._add_name(at, rule, host.name)

    def _add_name(self, at: int, rule: Rule, name: str) -> None:
        """File a name by itself, and under what it is known to resolve to.

        A denial of a name that nobody has resolved cannot be evaluated on an address
        without names, so it denies wherever it might apply.
        """
        self._names.setdefault(name.removeprefix("*"), []).append((at, rule))
        known: Iterable[tuple[str, ...]]
        if name.startswith("*."):
            ends = name[1:]
            known = [found for host, found in self._addresses.items() if host.endswith(ends)]
        else:
            known = [self._addresses[name]] if name in self._addresses else []
        for text in (text for group in known for text in group):
            address = network.address(text)
            # A name must not lead to this host or its neighbours (DNS rebinding).
            if address is not None:
                self._file(at, rule, network.single(address), False)
        if not known and rule.effect is not Effect.ALLOW:
            self._unresolved.append((at, rule))

    def _file(self, at: int, rule: Rule, where: network.Network, named: bool) -> None:
        self._masks.add((where.version, where.prefixlen))
        key = (where.version, where.prefixlen, int(where.network_address))
        self._networks.setdefault(key, []).append((at, rule, named))

    def _named(self, name: str) -> list[tuple[int, Rule]]:
        """Return the rules that name ``name``, itself or by a wildcard."""
        found = list(self._names.get(name, ()))
        dot = name.find(".")
        while dot >= 0:
            found += self._names.get(name[dot:], ())
            dot = name.find(".", dot + 1)
        return found

    def first(self, target: AddressTarget, address: Address) -> int | None:
        # What is special on the host is nothing to the host on the agent's own loopback.
        special = network.is_special(address) and not target.own
        plain = [*self._anywhere, *(self._own if target.own else ())]
        for name in target.names:
            plain += self._named(name)
        if not target.names and not target.own:
            plain += self._unresolved
        groups = [[(at, rule, False) for at, rule in sorted(plain, key=_ordinal)]]
        groups += self._around(address)
        for inner in network.translated(address):
            # SAFETY: a translator takes it there: what is refused has no such spelling
            groups += [
                [one for one in group if one[1].effect is not Effect.ALLOW]
                for group in self._around(inner)
            ]
        best: int | None = None
        for group in groups:
            for at, rule, named in group:
                if best is not None and at >= best:
                    break
                if special and not named and rule.effect is Effect.ALLOW:
                    continue
                if _takes(rule, target.protocol, target.port):
                    best = at
                    break
        return best

    def _around(self, address: Address) -> list[list[tuple[int, Rule, bool]]]:
        """Return the rules on each network that an address lies in."""
        value = int(address)
        found: list[list[tuple[int, Rule, bool]]] = []
        for version, length in self._masks:
            if version == address.version:
                drop = address.max_prefixlen - length
                found.append(self._networks.get((version, length, value >> drop << drop), []))
        return found

    def own(self, protocol: str) -> int | None:
        """Return the first rule for what is the agent's own and has no address."""
        rules = sorted([*self._anywhere, *self._own], key=_ordinal)
        return next((at for at, rule in rules if _takes(rule, protocol, 0)), None)

    def name(self, name: str) -> int | None:
        """Return the first rule that could allow a connection to ``name``, or refuses all."""
        rules = sorted([*self._anywhere, *self._named(name)], key=_ordinal)
        for at, rule in rules:
            # A denial of some ports leaves the name to be looked up for the others.
            if rule.effect is not Effect.DENY or not (rule.ports or rule.protocols):
                return at
        return None


def _ordinal(item: tuple[int, Rule]) -> int:
    return item[0]


def _takes(rule: Rule, protocol: str, port: int) -> bool:
    if rule.protocols and protocol not in rule.protocols:
        return False
    return not rule.ports or any(ports.low <= port <= ports.high for ports in rule.ports)
