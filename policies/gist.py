"""A policy in two or three lines: what it lets through, what it asks about, what it refuses.

For an overview: the order of the rules decides, and is not in it.  Pure.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeclaw.policies.document import Effect, Environment, Mode, Policy, Rule
from safeclaw.policies.model import printable

#: How many kinds of actions are named, how many targets of each, and how much of a target.
_KINDS_MAX = 12
_TARGETS_MAX = 3
_TARGET_MAX = 40
_WORDS = {Effect.ALLOW: "may", Effect.ASK: "asks a person before", Effect.DENY: "never"}


def gist(policy: Policy) -> list[str]:
    """Return the lines."""
    lines = [line for effect in Effect if (line := _line(policy.rules, effect))]
    lines += _variables(policy.environment)
    if policy.mode is Mode.OBSERVE:
        lines.insert(0, "mode: observe: what is refused is only recorded")
    return lines or ["may nothing"]


def _line(rules: Sequence[Rule], effect: Effect) -> str:
    named: dict[str, dict[str, None]] = {}
    for rule in rules:
        if rule.effect is effect and not rule.catch_all:
            known = named.setdefault(", ".join(rule.actions), {})
            known |= dict.fromkeys(_targets(rule))
    if not named:
        return ""
    parts = [f"{actions} {_some(list(targets))}" for actions, targets in named.items()]
    if len(parts) > _KINDS_MAX:
        parts[_KINDS_MAX:] = [f"and {len(parts) - _KINDS_MAX} kinds more"]
    return printable(f"{_WORDS[effect]}: {'; '.join(parts)}")


def _variables(environment: Environment) -> list[str]:
    held = [
        (word, names)
        for word, names in (
            ("never", list(environment.forbid)),
            ("always", [f"{name}={value}" for name, value in environment.pin]),
        )
        if names
    ]
    if not held:
        return []
    parts = [f"{word} {_some(names)}" for word, names in held]
    return [printable(f"programs start with: {'; '.join(parts)}")]


def _some(targets: list[str]) -> str:
    shown = [
        text if len(text) <= _TARGET_MAX else f"{text[: _TARGET_MAX - 1]}…"
        for text in targets[:_TARGETS_MAX]
    ]
    more = f" and {len(targets) - len(shown)} more" if len(targets) > len(shown) else ""
    return " | ".join(shown) + more


def _targets(rule: Rule) -> Sequence[str]:
    """Return what a rule is about, each condition's values; "anything" where there is none."""
    if rule.paths or rule.commands:
        return (*rule.paths, *rule.commands)
    ports = ",".join(
        str(one.low) if one.low == one.high else f"{one.low}-{one.high}" for one in rule.ports
    )
    hosts = rule.hosts or (("any host",) if rule.ports or rule.protocols else ())
    return [f"{host}:{ports}" if ports else host for host in hosts] or ["anything"]
