"""Exceptions: which rules allow what a later one refuses, and which moves that forbids."""

from __future__ import annotations

import pytest

from safeclaw.policies.compare import compare
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.loader import load
from safeclaw.policies.spared import Spared
from tests.unit.policies.verdicts import CONTEXT, ask

FILES = "action: [file.read, file.write]"
KEYS = f'{{{FILES}, path: "**/*.key", effect: deny}}'
ALL = f'{{{FILES}, path: "**", effect: allow}}'


def _rule(path: str, what: str = FILES) -> str:
    return f"{{{what}, path: {path}, effect: allow}}"


def _text(*rules: str) -> bytes:
    return ('version: "1.0"\nrules:\n' + "".join(f"  - {one}\n" for one in rules)).encode()


def _compiled(*rules: str) -> CompiledPolicy:
    return compile_policy(load(_text(*rules), name="p.yaml"), CONTEXT)


def _moves(compiled: CompiledPolicy, path: str, to: str) -> str:
    return ask(compiled, "file.write.rename", f"/ws/{path}", f"/ws/{to}")[0]


@pytest.mark.parametrize(
    ("rules", "found"),
    [
        ([_rule('"a/**"'), KEYS], [0]),
        ([KEYS, _rule('"a/**"')], []),
        ([_rule('"/etc/**"'), KEYS], []),
        ([_rule('"a/**"'), '{action: file.read, path: "b/**", effect: deny}'], []),
        ([_rule('"a/b/**"'), '{action: file.read, path: "a/*/x", effect: deny}'], [0]),
        ([_rule('"a/**"'), '{action: file.read, path: "a/b/c", effect: ask}'], [0]),
        ([_rule('"a/**"', "action: file.write"), '{action: file.read, path: "**", effect: deny}'],
         []),
        ([f"{{{FILES}, effect: allow}}", _rule('"a/**"'), KEYS], []),
        ([_rule('"a/**"'), '{action: "*", effect: deny}'], []),
    ],
)  # fmt: skip
def test_an_exception_stands_before_what_refuses_something_of_it(
    rules: list[str], found: list[int]
) -> None:
    compiled = _compiled(*rules)
    spared = Spared(compiled.rules, workspace="/ws", home="/home/u", leads={})
    assert [at for at in range(len(rules)) if at in spared] == found


def test_nothing_is_moved_to_where_an_exception_allows_more() -> None:
    compiled = _compiled(_rule('"open/**"'), KEYS, ALL)
    assert _moves(compiled, "d", "open/d") == "deny"
    assert _moves(compiled, "d", "open") == "deny"
    assert _moves(compiled, "open/d", "d") == "allow"
    assert _moves(compiled, "open/d", "open/e") == "allow"
    assert _moves(compiled, "d", "e") == "allow"


def test_nothing_is_moved_above_an_exception() -> None:
    compiled = _compiled(_rule('"a/b/*.key"'), KEYS, ALL)
    assert _moves(compiled, "d", "a") == "deny"
    assert _moves(compiled, "d", "a/b") == "deny"
    assert _moves(compiled, "d", "a/c") == "allow"
    # one file by its name is what it was
    compiled = _compiled(_rule("notes"), '{action: file.write, path: "no*", effect: deny}', ALL)
    assert _moves(compiled, "draft", "notes") == "allow"


@pytest.mark.parametrize(
    ("rules", "expected"),
    [
        ([_rule('"a/**"'), _rule('"b/**"'), KEYS], "allow"),
        ([_rule('"a/**"'), _rule('"b/**"', "action: file"), KEYS], "allow"),
        # what stands between refuses more in the one than in the other
        ([_rule('"b/**"'), KEYS, _rule('"a/**"')], "deny"),
        ([_rule('"a/*"'), _rule('"b/**"'), KEYS], "deny"),
        # as much, but not all that can be done
        ([_rule('"b/**"', "action: file.read"), _rule('"a/**"', "action: file.write"),
          _rule('"a/*"'), _rule('"b/*"'), KEYS], "deny"),
    ],
)  # fmt: skip
def test_what_is_allowed_as_much_before_may_be_moved(rules: list[str], expected: str) -> None:
    assert _moves(_compiled(*rules, ALL), "a/d", "b/d") == expected


def test_a_policy_that_drops_an_exception_lets_files_be_moved_there() -> None:
    old = load(_text(_rule('"open/**"'), KEYS, ALL), name="p.yaml")
    new = load(_text(KEYS, ALL), name="p.yaml")
    (finding,) = compare(old, new).wider
    assert "kept files from being moved there" in finding.why
    # where the workspace is the home, or lies in it
    old = load(_text(_rule('"~/open/**"'), KEYS, ALL), name="p.yaml")
    assert compare(old, new).wider
    assert not compare(old, old).wider
