"""What a person is told: the line that would allow an attempt really does."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.errors import UsageError
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.explain import explain, parse_target, suggest_line
from safeclaw.policies.loader import load
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
)

CONTEXT = Context(workspace="/ws", home="/home/u")


def compiled_from(line: str) -> CompiledPolicy:
    text = f'version: "1.0"\nruntime: none\nrules:\n  {line}\n'
    return compile_policy(load(text, name="s.yaml"), CONTEXT)


def allows(attempt: Attempt) -> bool:
    compiled = compiled_from(suggest_line(attempt, "/ws"))
    return compiled.evaluate(attempt).decision is Decision.ALLOW


@pytest.mark.parametrize(
    "attempt",
    [
        Attempt("file.read", FileTarget("/ws")),
        Attempt("file.read", FileTarget("/ws/src/a.py")),
        Attempt("file.read", FileTarget("/ws/~x")),
        Attempt("file.write.create", FileTarget("/etc/we[i]rd*{n}ame?\\")),
        Attempt("file.read", FileTarget("/ws/new\nline\udcff")),
        Attempt("file.read", FileTarget("/home/u/.ssh/config")),
        Attempt("network.connect", SocketTarget("/run/docker.sock")),
        Attempt("network.connect", AddressTarget("tcp", "127.0.0.1", 80)),
        Attempt("network.send", AddressTarget("udp", "2001:db8::1", 53)),
        Attempt("shell.execute", ProgramTarget("/usr/bin/env", ("env", "a b", "", "it's", "*"))),
        Attempt("shell.execute", ProgramTarget("/ws/run", ("run",))),
        Attempt("shell.execute", ProgramTarget("/ws/my tool", ("x", "$HOME", '"q"', "#"))),
        Attempt("session.start", OtherTarget("x")),
    ],
)
def test_the_suggested_line_allows_the_attempt(attempt: Attempt) -> None:
    assert allows(attempt)


@pytest.mark.parametrize("path", ["/opt/x/tool", "/ws/run", "/ws/my tool", "/opt/a*b"])
def test_the_suggested_line_for_a_program_that_is_not_there_allows_it_once_it_is(path: str) -> None:
    line = suggest_line(Attempt("shell.execute", FileTarget(path)), "/ws")
    for words in ((path,), (path, "--an", "argument")):
        attempt = Attempt("shell.execute", ProgramTarget(path, words))
        assert compiled_from(line).evaluate(attempt).decision is Decision.ALLOW


def test_the_suggested_line_for_a_rename_names_both_ends() -> None:
    attempt = Attempt("file.write.rename", FileTarget("/ws/a", "/ws/b"))
    assert allows(attempt)


NAMES = st.text(min_size=1, max_size=12).filter(lambda name: "/" not in name and "\0" not in name)


@given(NAMES.filter(lambda name: name not in (".", "..")))
def test_the_suggested_line_allows_any_name(name: str) -> None:
    assert allows(Attempt("file.read", FileTarget(f"/ws/{name}")))


@given(st.lists(st.text(max_size=10).filter(lambda word: "\0" not in word), max_size=4))
def test_the_suggested_line_allows_any_arguments(words: list[str]) -> None:
    assert allows(Attempt("shell.execute", ProgramTarget("/bin/x", ("x", *words))))


def test_the_suggested_line_allows_nothing_next_to_it() -> None:
    line = suggest_line(Attempt("file.read", FileTarget("/ws/a*b")), "/ws")
    other = Attempt("file.read", FileTarget("/ws/axb"))
    assert compiled_from(line).evaluate(other).decision is Decision.DENY


def test_an_explanation_names_verdict_rule_line_and_reason() -> None:
    compiled = compiled_from("- {action: file.read, path: x, effect: deny, reason: because}")
    lines = explain(compiled, Attempt("file.read", FileTarget("/ws/x")), "s.yaml")
    assert lines[:4] == ["verdict: deny", "rule: s:1", "line: s.yaml:4", "reason: because"]
    assert lines[4] == 'to allow: - {action: file.read, path: "x", effect: allow}'


@pytest.mark.parametrize(
    ("action", "words", "target"),
    [
        ("file.read", ["a/../b"], FileTarget("/ws/b")),
        ("file.write.rename", ["a", "/b"], FileTarget("/ws/a", "/b")),
        ("network.connect", ["192.0.2.1:443"], AddressTarget("tcp", "192.0.2.1", 443)),
        ("network.connect", ["udp:[2001:db8::1]:53"], AddressTarget("udp", "2001:db8::1", 53)),
        ("network.connect", ["/run/x.sock"], SocketTarget("/run/x.sock")),
        ("shell.execute", ["/bin/a", "-x"], ProgramTarget("/bin/a", ("/bin/a", "-x"))),
        ("ticket.close", ["7"], OtherTarget("7")),
    ],
)
def test_a_target_is_read_as_it_is_shown(action: str, words: list[str], target: object) -> None:
    assert parse_target(action, words, "/ws") == target


@pytest.mark.parametrize(
    ("action", "words"),
    [("file.read", []), ("file.read", ["a", "b", "c"]), ("shell.execute", []),
     ("network.connect", ["nowhere"]), ("network.connect", [])],
)  # fmt: skip
def test_a_target_that_makes_no_sense_is_a_usage_error(action: str, words: list[str]) -> None:
    with pytest.raises(UsageError):
        parse_target(action, words, "/ws")


@pytest.mark.parametrize(
    ("tried", "other"),
    [
        (FileTarget("/srv/a?b"), FileTarget("/srv/axb")),
        (FileTarget("/srv/????"), FileTarget("/srv/keys")),
        (
            ProgramTarget("/usr/bin/git", ("git", "a?b")),
            ProgramTarget("/usr/bin/git", ("git", "axb")),
        ),
    ],
)
def test_a_question_mark_in_a_name_is_no_wildcard_of_the_suggestion(
    tried: FileTarget | ProgramTarget, other: FileTarget | ProgramTarget
) -> None:
    action = "file.read" if isinstance(tried, FileTarget) else "shell.execute"
    attempt = Attempt(action, tried)
    assert allows(attempt)
    compiled = compiled_from(suggest_line(attempt, "/ws"))
    assert compiled.evaluate(Attempt(action, other)).decision is Decision.DENY
