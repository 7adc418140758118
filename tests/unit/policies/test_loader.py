"""Policies read from text: every mistake is named where it stands."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.errors import PolicyError
from safeclaw.policies import document
from safeclaw.policies.document import Effect, Mode, Policy, PortRange, Runtime
from safeclaw.policies.loader import load

HEAD = 'version: "1.0"\nrules:\n'
RULE = "  - {action: file.read, path: x, effect: allow}\n"


def problems(text: str | bytes) -> list[str]:
    with pytest.raises(PolicyError) as caught:
        load(text, name="p.yaml")
    return caught.value.message.splitlines()


def test_a_policy_is_read_with_lines_and_ids() -> None:
    policy = load(
        HEAD
        + RULE
        + "  - action: [network.connect, network.send]\n"
        + "    host: [example.org, 192.0.2.0/24]\n    port: [443, 8000-8099]\n"
        + "    protocol: tcp\n    effect: require_approval\n    reason: why\n"
        + "mode: observe\nruntime: none\n"
        + "resources: {memory: 2G, wall_time: 1h, processes: 9, cpu: 150%}\n"
        + "environment: {pass: [LANG, LC_*], set: {A: b}}\n",
        name="/x/team.yaml",
    )
    first, second = policy.rules
    assert (policy.name, policy.mode, policy.runtime) == ("team", Mode.OBSERVE, Runtime.NONE)
    assert (first.id, first.line, first.effect) == ("team:1", 3, Effect.ALLOW)
    assert (second.id, second.line, second.effect) == ("team:2", 4, Effect.ASK)
    assert second.ports == (PortRange(443, 443), PortRange(8000, 8099))
    assert (policy.resources.memory, policy.resources.wall_time) == (2 << 30, 3600)
    assert policy.resources.cpu == 150
    assert policy.environment.assign == (("A", "b"),)


def test_a_policy_survives_a_lease() -> None:
    policy = load(HEAD + RULE, name="p.yaml")
    wire = msgspec.msgpack.encode(policy)
    assert msgspec.msgpack.decode(wire, type=Policy) == policy


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "1:1", "empty"),
        ("- a\n", "1:1", "mapping"),
        ("version: '1.0'\n", "1:1", "'rules' is missing"),
        ("rules:\n" + RULE, "1:1", "'version' is missing"),
        ("version: 3\nrules:\n" + RULE, "1:10", "unknown version '3'"),
        ("version: '1.0'\nrules: []\n", "2:8", "list of rules is empty"),
        ("version: '1.0'\nrules: x\n", "2:8", "must be a list, not text"),
        (HEAD + "  - x\n", "3:5", "must be a mapping"),
        (HEAD + RULE + "ruels: 1\n", "4:1", "did you mean 'rules'"),
        (HEAD + "  - {actoin: x}\n", "3:6", "did you mean 'action'"),
        (HEAD + "  - {action: file.raed, effect: deny}\n", "3:14", "did you mean 'file.read'"),
        (HEAD + "  - {action: pay, effect: deny}\n", "3:14", "unknown action 'pay'"),
        (HEAD + "  - {action: 7, effect: deny}\n", "3:14", 'quote it: "7"'),
        (HEAD + "  - {action: [], effect: deny}\n", "3:14", "'action' is empty"),
        (HEAD + "  - {action: file.read}\n", "3:5", "no 'effect'"),
        (HEAD + "  - {effect: deny}\n", "3:5", "no 'action'"),
        (HEAD + "  - {action: file.read, effect: alow}\n", "3:33", "did you mean 'allow'"),
        (HEAD + "  - {action: file.read, effect: [deny]}\n", "3:33", "must be a word"),
        (HEAD + "  - {action: file.read, path: '[x', effect: deny}\n", "3:31", "never closed"),
        (HEAD + "  - {action: file.read, path: [a, []], effect: deny}\n", "3:35", "not a list"),
        (HEAD + "  - {action: file.read, command: x, effect: deny}\n", "3:25", "use path"),
        (HEAD + '  - {action: shell.execute, command: "\'x", effect: deny}\n', "3:38", "quot"),
        (HEAD + "  - {action: network.connect, host: 1.2.3.4/8, effect: deny}\n", "3:37", "mask"),
        (HEAD + "  - {action: network.connect, host: 'a b', effect: deny}\n", "3:37", "no host"),
        (HEAD + "  - {action: network.connect, port: 70000, effect: deny}\n", "3:37", "65535"),
        (HEAD + "  - {action: network.connect, protocol: tpc, effect: deny}\n", "3:41", "'tcp'"),
        (HEAD + "  - {action: '*', path: a, host: b, effect: deny}\n", "3:5", "one rule for each"),
        (HEAD + "  - {action: file.read, action: x, effect: deny}\n", "3:25", "stands twice"),
        (HEAD + "  - {action: '*', effect: deny}\n" + RULE, "4:5", "can never match"),
        (HEAD + "  - {<<: {a: b}, action: file.read, effect: deny}\n", "3:6", "merge"),
        (HEAD + "  - &a {action: file.read, effect: deny}\n  - *a\n", "4:5", "alias"),
        (HEAD + "  - !!python/object:os.system {}\n", "3:5", "tag"),
        (HEAD + RULE + "---\n" + HEAD + RULE, "4:1", "second document"),
        (HEAD + "  - {action: file.read\n", "4:1", "not valid YAML"),
        (HEAD + "  - {id: x, action: file.read, effect: deny}\n", "3:6", "unknown key 'id'"),
        (HEAD + RULE + "mode: off\n", "4:7", "unknown value"),
        (HEAD + RULE + "description: [x]\n", "4:14", "must be text"),
        (HEAD + RULE + "resources: {memory: lots}\n", "4:21", "512M"),
        (HEAD + RULE + "resources: {cpu: 2}\n", "4:18", "200%"),
        (HEAD + RULE + "environment: {pass: 'A=B'}\n", "4:21", "variable"),
        (HEAD + RULE + "# \x1b\n", "4:3", "U+001B"),
    ],
)
def test_a_mistake_is_named_with_line_and_column(text: str, place: str, said: str) -> None:
    found = problems(text)
    assert any(line.startswith(f"p.yaml:{place}: ") and said in line for line in found), found


def test_all_problems_come_at_once_in_order() -> None:
    found = problems("version: 9\nx: 1\nrules:\n  - {action: nope, effect: maybe, path: '../x'}\n")
    assert [line.split(":")[1] for line in found] == ["1", "2", "4", "4", "4"]


def test_text_that_is_not_utf8_is_refused_at_its_byte() -> None:
    assert problems(HEAD.encode() + b"  # \xff\n") == ["p.yaml:3:5: not UTF-8: byte 0xff"]


def test_a_file_too_large_is_refused() -> None:
    assert "too large" in problems(HEAD + RULE + "#" * document.MAX_BYTES)[0]


@pytest.mark.parametrize("opening", ["[", "{a: "])
def test_a_file_too_deep_is_refused_before_it_is_built(opening: str) -> None:
    assert "too deep" in problems("a: " + opening * 50_000)[0]


def test_a_file_with_too_many_values_is_refused() -> None:
    assert "too many values" in problems("[" + ",".join("a" * 120_000) + "]")[0]


@given(st.text(alphabet="-:{}[]*&!'\"\n aversion10ul,#|>%@\\", max_size=80))
def test_any_text_is_a_policy_or_a_policy_error(text: str) -> None:
    try:
        load(text, name="p")
    except PolicyError as error:
        lines = error.message.splitlines()
    else:
        lines = []
    assert all(line.startswith("p:") for line in lines)


def test_a_problem_never_carries_a_terminal_escape() -> None:
    (line,) = problems(HEAD + RULE + '"\\x1b[2Jmode": observe\n')
    assert "\x1b" not in line
    assert "\\x1b" in line


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("/a/team.yaml", "team"),
        ("runtime.yaml", "runtime-policy"),
        ("protected", "protected-policy"),
        ("x\x1b[1m.yml", "x__1m"),
    ],
)
def test_a_policys_name_cannot_pass_for_anothers(file: str, name: str) -> None:
    policy = load(HEAD + RULE, name=file)
    assert (policy.name, policy.rules[0].id) == (name, f"{name}:1")
