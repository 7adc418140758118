"""How far a policy's allow rules can reach: what the walls must leave open."""

from __future__ import annotations

from collections.abc import Iterable

from safeclaw.policies import network
from safeclaw.policies.buckets import covers
from safeclaw.policies.command import command_globs
from safeclaw.policies.document import Effect, Rule
from safeclaw.policies.glob import path_globs
from safeclaw.policies.network import OWN_LOOPBACK

# Where a distribution keeps programs, and what the kernel opens to start one.
SYSTEM = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
_FILE_ACTIONS = (
    "file.read", "file.write", "file.write.create", "file.write.modify", "file.write.delete",
    "file.write.rename", "file.write.link", "file.write.metadata",
)  # fmt: skip
_NETWORK_ACTIONS = ("network.connect", "network.send", "network.bind")


def _concerns(rule: Rule, actions: Iterable[str]) -> bool:
    return any(covers(pattern, action) for pattern in rule.actions for action in actions)


def _open(rules: Iterable[Rule]) -> list[Rule]:
    return [rule for rule in rules if rule.effect is not Effect.DENY]


def outermost(paths: Iterable[str]) -> tuple[str, ...]:
    """Return ``paths`` sorted, without those that lie in another."""
    kept: list[str] = []
    for path in sorted(set(paths), key=lambda path: path.split("/")):
        if not kept or not (path + "/").startswith(kept[-1].rstrip("/") + "/"):
            kept.append(path)
    return tuple(kept)


def view(
    rules: Iterable[Rule], workspace: str, home: str, programs: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the prefixes of all paths that a rule can allow anything on."""
    rules = list(rules)
    found = list(executable_roots(rules, workspace, home, programs))
    for rule in _open(rules):
        for text in rule.paths:
            found += [glob.prefix for glob in path_globs(text, workspace=workspace, home=home)]
        if rule.unconditional and _concerns(rule, _FILE_ACTIONS):
            found.append("/")
    return outermost(found)


def executable_roots(
    rules: Iterable[Rule], workspace: str, home: str, programs: tuple[str, ...]
) -> tuple[str, ...]:
    """Return the prefixes of all programs that a rule can allow to run."""
    found: list[str] = []
    for rule in _open(rules):
        if not _concerns(rule, ("shell.execute",)):
            continue
        if rule.unconditional:
            return ("/",)
        for text in rule.commands:
            found += [*SYSTEM, *programs]
            for glob in command_globs(text, workspace=workspace, home=home):
                if glob.path is not None:
                    found.append(glob.path.prefix)
    return outermost(found)


def names(rules: Iterable[Rule]) -> tuple[str, ...]:
    """Return the host names, wildcards left out, that a rule can allow the agent to reach."""
    return tuple(
        sorted(
            {
                host.name
                for rule in _open(rules)
                if _concerns(rule, _NETWORK_ACTIONS)
                for text in rule.hosts
                for host in network.hosts(text)
                if host.name is not None and not host.name.startswith("*.")
            }
        )
    )


def names_network(rules: Iterable[Rule]) -> bool:
    """Return whether a rule can allow a connection beyond the agent's own loopback."""
    return any(
        not rule.paths and rule.hosts != (OWN_LOOPBACK,) and _concerns(rule, _NETWORK_ACTIONS)
        for rule in _open(rules)
    )


def names_to_resolve(rules: Iterable[Rule]) -> set[str]:
    """Return the host names that rules refuse, where a rule could allow their bare addresses."""
    rules = list(rules)
    if not any(_by_address(rule) for rule in _open(rules) if not rule.paths):
        return set()
    return {
        host.name
        for rule in rules
        if rule.effect is not Effect.ALLOW
        for text in rule.hosts
        for host in network.hosts(text)
        if host.name is not None and not host.name.startswith("*.")
    }


def _by_address(rule: Rule) -> bool:
    """Whether a rule can match an address that nobody looked up by name."""
    if not _concerns(rule, _NETWORK_ACTIONS):
        return False
    hosts = [host for text in rule.hosts for host in network.hosts(text)]
    return not hosts or any(host.name is None and not host.own for host in hosts)
