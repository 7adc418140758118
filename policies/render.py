"""Rules as YAML that a person reads: one line where it fits, else its lists wrapped."""

from __future__ import annotations

from collections.abc import Sequence

from safeclaw.policies.document import Environment, Policy, Rule, Runtime
from safeclaw.policies.explain import quoted
from safeclaw.policies.model import printable
from safeclaw.policies.variables import Variables

_WIDTH = 100


def rule_lines(
    actions: Sequence[str], conditions: Sequence[tuple[str, Sequence[str]]], effect: str
) -> list[str]:
    """Return a rule as an item of a policy's list; the conditions' values are YAML already."""
    pairs = [("action", actions), *conditions, ("effect", [effect])]
    whole = [f"{key}: {_list(values)}" for key, values in pairs]
    one = f"  - {{{', '.join(whole)}}}"
    if len(one) <= _WIDTH:
        return [one]
    lines: list[str] = []
    for key, values in pairs:
        lines += _wrapped(key, values, first=not lines)
    return lines


def _list(values: Sequence[str]) -> str:
    return values[0] if len(values) == 1 else f"[{', '.join(values)}]"


def _wrapped(key: str, values: Sequence[str], *, first: bool) -> list[str]:
    opened, closed = ("[", "]") if len(values) > 1 else ("", "")
    line = f"  {'-' if first else ' '} {key}: {opened}"
    lines: list[str] = []
    for at, value in enumerate(values):
        text = value + (closed if at + 1 == len(values) else ", ")
        if at and len(line) + len(text) > _WIDTH and line.strip():
            lines.append(line.rstrip())
            line = " " * 6
        line += text
    return [*lines, line]


def rule_of(rule: Rule) -> list[str]:
    """Return the lines of a rule of a policy, with its reason."""
    ports = [
        str(ports.low) if ports.low == ports.high else f"{ports.low}-{ports.high}"
        for ports in rule.ports
    ]
    conditions: list[tuple[str, Sequence[str]]] = []
    for key, values in (
        ("path", rule.paths), ("command", rule.commands), ("host", rule.hosts),
        ("port", ports), ("protocol", rule.protocols),
    ):  # fmt: skip
        if values:
            conditions.append((key, [quoted(value) for value in values]))
    if rule.reason:
        conditions.append(("reason", [quoted(rule.reason)]))
    actions = [quoted(action) if "*" in action else action for action in rule.actions]
    return rule_lines(actions, conditions, str(rule.effect))


def effective(policy: Policy, rules: Sequence[Rule], file: str) -> list[str]:
    """Return the policy that is really in force, as a policy without parents or runtime.

    ``rules`` are the policy's with the runtime in its place; each is preceded by its id
    and the place it comes from.
    """
    lines = [f"# {policy.name} {policy.version}, sha256 {policy.sha256}"]
    if policy.parents:
        lines.append(f"# extends {', '.join(policy.parents)}")
    lines.append('version: "1.0"')
    if policy.description:
        lines.append(f"description: {quoted(policy.description)}")
    lines += [f"mode: {policy.mode}", f"assurance: {policy.assurance}", f"runtime: {Runtime.NONE}"]
    resources = [
        f"{key}: {value}"
        for key in policy.resources.__struct_fields__
        if (value := getattr(policy.resources, key)) is not None
    ]
    if resources:
        lines.append(f"resources: {{{', '.join(resources)}}}")
    lines += _environment(policy.environment)
    lines.append("rules:")
    for rule in rules:
        if rule.id.startswith("runtime:"):
            where = "the runtime preset"
        else:
            where = f"{printable(rule.file or file)}:{rule.line}"
        lines.append(f"  # {rule.id}  ({where})")
        lines += rule_of(rule)
    return lines


def _environment(environment: Environment) -> list[str]:
    lines: list[str] = []
    held = Variables(environment)
    # what a parent forbids or pins is not to be set beside it
    pinned = dict(environment.pin)
    assign = [
        (name, value)
        for name, value in environment.assign
        if name not in pinned and not held.forbids(name)
    ]
    for key, names in (("pass", environment.inherit), ("forbid", environment.forbid)):
        if names:
            lines.append(f"  {key}: [{', '.join(quoted(name) for name in names)}]")
    for key, pairs in (("set", assign), ("pin", environment.pin)):
        if pairs:
            said = ", ".join(f"{name}: {quoted(value)}" for name, value in pairs)
            lines.append(f"  {key}: {{{said}}}")
    return ["environment:", *lines] if lines else []
