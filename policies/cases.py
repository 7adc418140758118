"""Cases for ``safeclaw policy test``: attempts, and what a policy is to decide on them.

Pure: the text is passed in; every mistake is named with line and column.
"""

from __future__ import annotations

import msgspec

from safeclaw.errors import PolicyError, UsageError
from safeclaw.policies import command, fields
from safeclaw.policies.document import Effect
from safeclaw.policies.explain import parse_target
from safeclaw.policies.glob import GlobError
from safeclaw.policies.loader import check_action
from safeclaw.policies.model import Attempt, ProgramTarget
from safeclaw.policies.yamltext import Mapping, Node, Problems, Scalar, Sequence, parse

TOP_KEYS = ("policy", "workspace", "cases")
CASE_KEYS = ("name", "action", "target", "environment", "expect", "rule")


class Case(msgspec.Struct, frozen=True):
    """One attempt, and what is expected to become of it (and, if said, by which rule).

    ``environment`` is what a program is started with besides what the policy pins.
    """

    line: int
    attempt: Attempt
    expect: Effect
    name: str = ""
    rule: str = ""
    environment: tuple[tuple[str, str], ...] = ()


class Cases(msgspec.Struct, frozen=True):
    """A file of cases; ``policy`` and ``workspace`` are "" where it does not say."""

    cases: tuple[Case, ...]
    policy: str = ""
    workspace: str = ""


def load_cases(text: bytes, *, name: str, workspace: str) -> Cases:
    """Return the cases in ``text``; relative targets stand in ``workspace``.

    Raises PolicyError, whose message has one line for every problem.
    """
    problems = Problems(name)
    root = parse(text, problems)
    found = Cases(())
    if isinstance(root, Mapping):
        keys = fields.keys(root, TOP_KEYS, "a file of cases", problems)
        found = Cases(
            _cases(root, keys.get("cases"), workspace, problems),
            fields.text(keys.get("policy"), problems),
            fields.text(keys.get("workspace"), problems),
        )
    elif root is not None:
        problems.add(root.place, "a file of cases is a mapping with the key cases")
    if problems:
        raise PolicyError(
            "\n".join(problems.lines()), hint="docs/policy-reference.md shows such a file"
        )
    return found


def _cases(
    root: Mapping, node: Node | None, workspace: str, problems: Problems
) -> tuple[Case, ...]:
    if node is None:
        problems.add(root.place, "the key 'cases' is missing; it is a list of attempts")
        return ()
    if not isinstance(node, Sequence) or not node.items:
        problems.add(node.place, "cases must be a list with at least one case")
        return ()
    found: list[Case] = []
    for item in node.items:
        if not isinstance(item, Mapping):
            problems.add(item.place, f"a case must be a mapping, not {fields.kind(item)}")
            continue
        case = _case(item, workspace, problems)
        if case is not None:
            found.append(case)
    return tuple(found)


def _case(node: Mapping, workspace: str, problems: Problems) -> Case | None:
    keys = fields.keys(node, CASE_KEYS, "a case", problems)
    for key in ("action", "expect"):
        if key not in keys:
            problems.add(node.place, f"the case has no '{key}'")
    action = fields.text(keys.get("action"), problems)
    expect = _expected(keys.get("expect"), problems)
    if not action or expect is None:
        return None
    try:
        check_action(action)
    except GlobError as error:
        problems.add(keys["action"].place, f"action: {error}")
        return None
    try:
        target = parse_target(action, _words(keys.get("target"), action, problems), workspace)
    except (UsageError, GlobError) as error:
        message = error.message if isinstance(error, UsageError) else str(error)
        problems.add(keys.get("target", node).place, f"target: {message}")
        return None
    name, rule = fields.text(keys.get("name"), problems), fields.text(keys.get("rule"), problems)
    given = fields.variables(keys, "environment", problems)
    if given and not isinstance(target, ProgramTarget):
        problems.add(keys["environment"].place, "only a program has an environment")
    environment = tuple((name, value) for name, (_, value) in given.items())
    return Case(node.place.line, Attempt(action, target), expect, name, rule, environment)


def _expected(node: Node | None, problems: Problems) -> Effect | None:
    if node is None:
        return None
    if isinstance(node, Scalar) and node.text in {str(effect) for effect in Effect}:
        return Effect(node.text)
    shown = f", not '{node.text}'" if isinstance(node, Scalar) else ""
    problems.add(node.place, f"expect must be allow, deny or ask{shown}")
    return None


def _words(node: Node | None, action: str, problems: Problems) -> list[str]:
    """Return the words of a target; a command may be written as one text."""
    if isinstance(node, Scalar) and action.partition(".")[0] == "shell":
        return command.tokens(fields.text(node, problems))
    return [text for _, text in fields.texts(node, "target", problems, numbers=True)]
