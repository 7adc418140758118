"""YAML text to a :class:`Policy`, or every problem of it at once.

Each problem is ``name:line:column: message``, and says what was meant where
that can be guessed.  Pure: the text is passed in; see ``source`` for files.
"""

from __future__ import annotations

import hashlib
import pathlib
import re
from collections.abc import Callable, Iterable
from typing import TypeVar

from safeclaw.errors import PolicyError
from safeclaw.policies import fields, glob, inherit, network
from safeclaw.policies.document import (
    RUNTIME_NAME,
    Assurance,
    Effect,
    Environment,
    Mode,
    Parent,
    Policy,
    PortRange,
    Pseudonymise,
    Resources,
    Rule,
    Runtime,
)
from safeclaw.policies.patterns import Patterns
from safeclaw.policies.variables import Variables
from safeclaw.policies.yamltext import Mapping, Node, Problems, Scalar, Sequence, parse

_C = TypeVar("_C", Runtime, Mode, Assurance)

VERSIONS = ("1", "1.0")
_RESERVED = (RUNTIME_NAME, "protected", "default-deny", "environment")

TOP_KEYS = (
    "version", "description", "extends", "rules", "runtime", "mode", "assurance", "resources",
    "environment", "pseudonymise",
)  # fmt: skip
ENVIRONMENT_KEYS = ("pass", "set", "forbid", "pin")
PSEUDONYMISE_KEYS = ("path", "action")
_CONDITIONS = ("path", "command", "host", "port", "protocol")
RULE_KEYS = ("action", *_CONDITIONS, "effect", "reason")
EFFECTS = {
    "allow": Effect.ALLOW,
    "deny": Effect.DENY,
    "ask": Effect.ASK,
    "require_approval": Effect.ASK,
}
ACTION = re.compile(r"\*|[a-z][a-z0-9_-]*(\.[a-z][a-z0-9_-]*)*(\.\*)?")
KNOWN_ACTIONS = (
    "file", "file.read", "file.write", "file.write.create", "file.write.modify",
    "file.write.delete", "file.write.rename", "file.write.link", "file.write.metadata",
    "shell", "shell.execute", "network", "network.connect", "network.bind", "network.send",
    "session", "session.start",
)  # fmt: skip
RESOURCES: dict[str, Callable[[str], int]] = {
    "memory": fields.size,
    "processes": fields.count,
    "cpu": fields.share,
    "cpu_time": fields.duration,
    "file_size": fields.size,
    "open_files": fields.count,
    "wall_time": fields.duration,
}
_FAMILIES = {
    "file": ("path",),
    "shell": ("command",),
    "network": ("path", "host", "port", "protocol"),
    "*": _CONDITIONS,
}


def load(
    text: bytes | str,
    *,
    name: str,
    shipped_runtime: bool = False,
    parents: Iterable[Parent] = (),
) -> Policy:
    """Return the policy in ``text``.

    ``name`` is the file it came from; its stem becomes the policy's name.
    ``shipped_runtime`` is for the runtime preset alone, whose rules carry names.
    ``parents`` are the policies it extends (``source.gather``).
    Raises PolicyError, whose message has one line for every problem.
    """
    title = RUNTIME_NAME if shipped_runtime else policy_name(name)
    policy, lines = inherit.assemble(
        text, name, title, parents=parents, read=_draft, name_of=policy_name
    )
    if policy is None:
        raise PolicyError(
            "\n".join(lines),
            hint="docs/policy-reference.md has every key; safeclaw policy check only looks",
        )
    return policy


def extended(text: bytes, name: str) -> list[str]:
    """Return what the policy in ``text`` extends, as it is written; mistakes are left out."""
    draft = _draft(text, policy_name(name), Problems(name), Patterns())
    return [] if draft is None else [ref for _, ref in draft.extends]


def policy_name(name: str) -> str:
    """Return the name of a policy that was read from ``name``."""
    path = pathlib.PurePosixPath(name)
    stem = path.stem if path.suffix in (".yaml", ".yml") else path.name
    plain = re.sub(r"[^A-Za-z0-9._-]", "_", stem)[:64] or "policy"
    # A rule id must say truly whose rule it is.
    return f"{plain}-policy" if plain in _RESERVED else plain


def _draft(
    text: bytes | str, title: str, problems: Problems, patterns: Patterns
) -> inherit.Draft | None:
    root = parse(text, problems)
    if root is None:
        return None
    if not isinstance(root, Mapping):
        problems.add(root.place, "a policy is a mapping with the keys version and rules")
        return None
    found = fields.keys(root, TOP_KEYS, "a policy", problems)
    raw = text if isinstance(text, bytes) else text.encode()
    version = _version(root, found.get("version"), problems)
    extends = tuple(fields.texts(found.get("extends"), "extends", problems))
    policy = Policy(
        name=title,
        version=version,
        sha256=hashlib.sha256(raw).hexdigest(),
        rules=()
        if extends and "rules" not in found
        else _rules(root, found.get("rules"), title, problems, patterns),
        description=fields.text(found.get("description"), problems, multiline=True),
        runtime=_choice(found.get("runtime"), Runtime, Runtime.DEFAULT, problems),
        mode=_choice(found.get("mode"), Mode, Mode.ENFORCE, problems),
        assurance=_choice(found.get("assurance"), Assurance, Assurance.PIPELINED, problems),
        resources=_resources(found.get("resources"), problems),
        environment=_environment(found.get("environment"), problems),
        pseudonymise=_pseudonymise(found.get("pseudonymise"), problems, patterns),
    )
    return inherit.Draft(policy, frozenset(found), extends)


def _version(root: Mapping, node: Node | None, problems: Problems) -> str:
    if node is None:
        problems.add(root.place, "the key 'version' is missing; write version: \"1.0\"")
        return ""
    if not isinstance(node, Scalar) or node.text not in VERSIONS:
        shown = f" '{node.text}'" if isinstance(node, Scalar) else ""
        problems.add(node.place, f'unknown version{shown}; write version: "1.0"')
        return ""
    return node.text


def _choice(node: Node | None, kind: type[_C], default: _C, problems: Problems) -> _C:
    if node is None:
        return default
    names = [str(item) for item in kind]
    if isinstance(node, Scalar) and node.text in names:
        return kind(node.text)
    if isinstance(node, Scalar):
        problems.add(node.place, f"unknown value '{node.text}'{fields.meant(node.text, names)}")
    else:
        problems.add(node.place, f"must be one of {', '.join(names)}")
    return default


def _rules(
    root: Mapping, node: Node | None, title: str, problems: Problems, patterns: Patterns
) -> tuple[Rule, ...]:
    if node is None:
        problems.add(root.place, "the key 'rules' is missing; a policy is a list of rules")
        return ()
    if not isinstance(node, Sequence):
        problems.add(node.place, f"rules must be a list, not {fields.kind(node)}")
        return ()
    if not node.items:
        problems.add(node.place, "the list of rules is empty; nothing would ever be allowed")
        return ()
    found: list[Rule] = []
    for ordinal, item in enumerate(node.items, 1):
        if not isinstance(item, Mapping):
            problems.add(item.place, f"a rule must be a mapping, not {fields.kind(item)}")
            continue
        found.append(_rule(item, title, ordinal, problems, patterns))
    if title == RUNTIME_NAME:
        return tuple(found)
    for early, rule in enumerate(found[:-1]):
        if rule.catch_all:
            problems.add(
                node.items[early + 1].place,
                f"this rule can never match: the rule on line {rule.line} denies everything",
            )
            break
    return tuple(found)


def _rule(node: Mapping, title: str, ordinal: int, problems: Problems, patterns: Patterns) -> Rule:
    known = ("id", *RULE_KEYS) if title == RUNTIME_NAME else RULE_KEYS
    found = fields.keys(node, known, "a rule", problems)
    actions = _texts(found, "action", check_action, problems)
    if "action" not in found:
        problems.add(node.place, "the rule has no 'action'")
    _check_conditions(actions, node, found, problems)
    name = fields.text(found.get("id"), problems) or str(ordinal)
    ports: list[PortRange] = []
    for place, text in fields.texts(found.get("port"), "port", problems, numbers=True):
        try:
            ports.append(network.port_range(text))
        except glob.GlobError as error:
            problems.add(place, str(error))
    return Rule(
        id=f"{title}:{name}",
        line=node.place.line,
        actions=actions,
        effect=_effect(node, found.get("effect"), problems),
        paths=_texts(found, "path", patterns.path, problems),
        commands=_texts(found, "command", patterns.command, problems),
        hosts=_texts(found, "host", network.hosts, problems),
        ports=tuple(ports),
        protocols=_texts(found, "protocol", _check_protocol, problems),
        reason=fields.text(found.get("reason"), problems, multiline=True),
    )


def _texts(
    found: dict[str, Node], key: str, check: Callable[[str], object], problems: Problems
) -> tuple[str, ...]:
    values: list[str] = []
    for place, text in fields.texts(found.get(key), key, problems):
        try:
            check(text)
        except glob.GlobError as error:
            problems.add(place, f"{key}: {error}")
        else:
            values.append(text)
    return tuple(values)


def check_action(text: str) -> None:
    """Raise GlobError for what no rule can say as its action."""
    if not ACTION.fullmatch(text):
        raise glob.GlobError(f"'{text}' is no action; an action reads like file.read, or \"*\"")
    bare = text.removesuffix(".*")
    if bare.partition(".")[0] in ("file", "shell", "network", "session"):
        if bare not in KNOWN_ACTIONS:
            guess = fields.meant(bare, KNOWN_ACTIONS)
            raise glob.GlobError(f"unknown action '{text}'{guess}")
    elif text != "*" and "." not in text:
        raise glob.GlobError(f"unknown action '{text}'{fields.meant(text, KNOWN_ACTIONS)}")


def _check_protocol(text: str) -> None:
    if text not in network.PROTOCOLS:
        raise glob.GlobError(f"unknown protocol '{text}'{fields.meant(text, network.PROTOCOLS)}")


def _check_conditions(
    actions: tuple[str, ...], node: Mapping, found: dict[str, Node], problems: Problems
) -> None:
    """Note conditions that no attempt of the rule's actions could ever meet."""
    if not actions:
        return
    useful = {key for action in actions for key in _FAMILIES.get(action.partition(".")[0], ())}
    for key, _ in node.entries:
        if key.text in _CONDITIONS and key.text not in useful:
            hint = f"; use {' or '.join(sorted(useful))}" if useful else ""
            problems.add(key.place, f"'{key.text}' says nothing about {', '.join(actions)}{hint}")
    groups = [
        name
        for name, members in (
            ("path", ("path",)), ("command", ("command",)), ("host", ("host", "port", "protocol")),
        )
        if any(member in found for member in members)
    ]  # fmt: skip
    if len(groups) > 1:
        problems.add(
            node.place,
            f"{' and '.join(groups)} never hold for the same attempt; write one rule for each",
        )


def _effect(rule: Mapping, node: Node | None, problems: Problems) -> Effect:
    if node is None:
        problems.add(rule.place, "the rule has no 'effect'; write allow, deny or ask")
    elif not isinstance(node, Scalar):
        problems.add(node.place, f"effect must be a word, not {fields.kind(node)}")
    elif node.text not in EFFECTS:
        guess = fields.meant(node.text, EFFECTS)
        problems.add(node.place, f"unknown effect '{node.text}'{guess}")
    else:
        return EFFECTS[node.text]
    return Effect.DENY


def _resources(node: Node | None, problems: Problems) -> Resources:
    values: dict[str, int] = {}
    for key, value in fields.mapping(node, tuple(RESOURCES), "resources", problems).items():
        if not isinstance(value, Scalar) or value.kind not in ("str", "int"):
            problems.add(value.place, f"{key} must be a number, not {fields.kind(value)}")
            continue
        try:
            values[key] = RESOURCES[key](value.text)
        except glob.GlobError as error:
            problems.add(value.place, f"{key}: {error}")
    return Resources(**values)


def _environment(node: Node | None, problems: Problems) -> Environment:
    found = fields.mapping(node, ENVIRONMENT_KEYS, "environment", problems)
    assign = fields.variables(found, "set", problems)
    pin = fields.variables(found, "pin", problems)
    forbid = _variables(found, "forbid", problems)
    environment = Environment(
        inherit=tuple(_variables(found, "pass", problems)),
        assign=tuple((name, value) for name, (_, value) in assign.items()),
        forbid=tuple(forbid),
        pin=tuple((name, value) for name, (_, value) in pin.items()),
    )
    held = Variables(environment)
    for name, (place, _) in assign.items():
        if name in pin:
            problems.add(place, f"'{name}' is pinned, too; pin sets it already")
        elif held.forbids(name):
            problems.add(place, f"'{name}' is forbidden, too; pin it to allow this one value")
    return environment


def _variables(found: dict[str, Node], key: str, problems: Problems) -> list[str]:
    names: list[str] = []
    for place, text in fields.texts(found.get(key), key, problems):
        if re.fullmatch(rf"{fields.VARIABLE}\*?", text):
            names.append(text)
        else:
            problems.add(place, f"'{text}' is no variable's name (a last * is allowed)")
    return names


def _pseudonymise(node: Node | None, problems: Problems, patterns: Patterns) -> Pseudonymise:
    found = fields.mapping(node, PSEUDONYMISE_KEYS, "pseudonymise", problems)
    if isinstance(node, Mapping) and not found:
        problems.add(node.place, "pseudonymise is empty; write path: [...] or action: [...]")
    return Pseudonymise(
        paths=_texts(found, "path", patterns.path, problems),
        actions=_texts(found, "action", check_action, problems),
    )
