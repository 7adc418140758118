"""What a policy forbids and pins of a program's environment."""

from __future__ import annotations

import pytest

from safeclaw.errors import PolicyError
from safeclaw.policies.cases import load_cases
from safeclaw.policies.compare import compare
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Environment, Policy
from safeclaw.policies.explain import explain
from safeclaw.policies.inherit import Draft, merge
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, ProgramTarget, target_fields
from safeclaw.policies.observed import target_of
from safeclaw.policies.render import effective
from safeclaw.policies.variables import Variables

HEAD = 'version: "1.0"\nrules:\n'
GIT = ProgramTarget("/usr/bin/git", ("git", "push"))
HELD = Environment(forbid=("LD_*", "BASH_ENV"), pin=(("LD_BIND_NOW", "1"), ("PATH", "/usr/bin")))
PINNED = [b"LD_BIND_NOW=1", b"PATH=/usr/bin"]


def policy(environment: str, rules: str = '  - {action: "*", effect: allow}\n') -> Policy:
    return load(f"{HEAD}{rules}environment: {environment}\n", name="p.yaml")


def compiled(environment: str, effect: str = "allow") -> CompiledPolicy:
    rules = f'  - {{action: shell.execute, command: "git *", effect: {effect}}}\n'
    return compile_policy(policy(environment, rules), Context("/ws", "/home/u"))


def judged(by: CompiledPolicy, *entries: bytes) -> tuple[str, str]:
    target = ProgramTarget(GIT.program, GIT.argv, variables=by.refused_variables(entries))
    attempt = Attempt("shell.execute", target)
    return str(by.outcome(attempt)), by.evaluate(attempt).rule


@pytest.mark.parametrize(
    ("more", "refused"),
    [
        ([], ()),
        ([b"LANG=C", b"LDX=1", b"bash_env=1"], ()),
        ([b"LD_PRELOAD=x.so"], ("LD_PRELOAD",)),
        ([b"LD_PRELOAD="], ("LD_PRELOAD",)),
        ([b"LD_PRELOAD"], ("LD_PRELOAD",)),
        ([b"LD_=", b"BASH_ENV=/x", b"BASH_ENVY=/x"], ("LD_", "BASH_ENV")),
        ([b"PATH=/usr/bin"], ()),
        ([b"PATH=/usr/bin:/ws"], ("PATH",)),
        ([b"PATH"], ("PATH",)),
        ([b"LD_BIND_NOW="], ("LD_BIND_NOW",)),
        ([b"=PATH=/x", b""], ()),
        ([b"LD_\xff\n=1"], ("LD_\udcff\n",)),
        ([b"LD_%d=" % at for at in range(100)], tuple(f"LD_{at}" for at in range(8))),
    ],
)
def test_what_may_not_be_given_is_named(more: list[bytes], refused: tuple[str, ...]) -> None:
    assert Variables(HELD).refused([*PINNED, *more]) == refused
    assert Variables(HELD).refused([*more, *PINNED]) == refused


def test_a_pinned_variable_that_is_not_there_is_refused() -> None:
    assert Variables(HELD).refused([b"HOME=/"]) == ("LD_BIND_NOW", "PATH")


def test_a_policy_that_says_nothing_of_variables_refuses_none() -> None:
    assert Variables(Environment()).refused([b"LD_PRELOAD=x"]) == ()


def test_a_session_starts_without_the_forbidden_and_with_the_pinned() -> None:
    chosen = {"PATH": "/ws/bin", "LD_PRELOAD": "x", "LANG": "C"}
    held = Variables(HELD)
    first = held.first(chosen)
    assert first == {"PATH": "/usr/bin", "LANG": "C", "LD_BIND_NOW": "1"}
    assert held.refused(f"{name}={value}".encode() for name, value in first.items()) == ()


def test_a_program_with_a_forbidden_variable_is_denied_by_its_own_rule() -> None:
    by = compiled("{forbid: LD_PRELOAD, pin: {HOME: /h}}")
    assert judged(by, b"HOME=/h") == ("allow", "p:1")
    assert judged(by, b"HOME=/h", b"LD_PRELOAD=x") == ("deny", "environment")
    assert judged(by) == ("deny", "environment")


def test_a_rule_that_denies_is_named_before_the_variables_are() -> None:
    assert judged(compiled("{forbid: A}", "deny"), b"A=1") == ("deny", "p:1")


def test_nobody_is_asked_about_a_program_with_a_forbidden_variable() -> None:
    by = compiled("{forbid: A}", "ask")
    assert judged(by) == ("ask", "p:1")
    assert judged(by, b"A=1") == ("deny", "environment")


def test_the_person_is_told_which_variable_and_what_would_allow_it() -> None:
    by = compiled("{forbid: 'LD_*', pin: {PATH: /usr/bin}}")
    for given, said in (
        ({"LD_DEBUG": "all"}, "LD_DEBUG is a variable that 'forbid' under environment: names"),
        ({"PATH": "/ws"}, "PATH is not what 'pin' under environment: says"),
    ):
        variables = by.variables.refused_with(given)
        target = ProgramTarget(GIT.program, GIT.argv, variables=variables)
        lines = explain(by, Attempt("shell.execute", target), "p.yaml")
        assert lines == [
            "verdict: deny",
            "rule: environment",
            "line: environment: of the policy",
            f"reason: {said}",
            "to allow: change 'forbid' or 'pin' under environment:",
        ]
    assert by.variables.refused_with({}) == ()


def test_the_names_are_recorded_and_read_back_but_no_values() -> None:
    target = ProgramTarget("/usr/bin/git", ("git",), variables=("LD_\udcff",))
    fields = target_fields(target)
    assert fields["variables"] == ["LD_\\xff"]
    assert target_of(fields) == target
    assert "variables" not in target_fields(GIT)


def test_what_is_in_force_is_shown_and_can_be_read_again() -> None:
    whole = policy("{pass: [A], forbid: ['LD_*'], set: {B: b}, pin: {LD_X: 'it: \"is\"'}}")
    again = load("\n".join(effective(whole, whole.rules, "p.yaml")), name="p.yaml")
    assert again.environment == whole.environment


def test_who_extends_a_policy_does_not_give_back_what_it_forbids_or_pins() -> None:
    parent = policy("{forbid: [A, B], pin: {C: parent, D: parent}, set: {E: parent}}")
    child = policy("{pass: [A], set: {B: x, C: x}, forbid: E, pin: {D: child}}")
    whole = merge([Draft(one, frozenset(["environment"]), ()) for one in (child, parent)])
    first = Variables(whole.environment).first({"A": "1", **dict(whole.environment.assign)})
    assert first == {"C": "parent", "D": "child"}
    again = load("\n".join(effective(whole, whole.rules, "p.yaml")), name="p.yaml")
    assert Variables(again.environment).first({}) == first


@pytest.mark.parametrize(
    ("environment", "place", "said"),
    [
        ("{forbid: 'A=B'}", "4:23", "no variable's name"),
        ("{forbid: '*'}", "4:23", "no variable's name"),
        ("{forbid: {A: b}}", "4:23", ""),
        ("{pin: [PATH]}", "4:20", "pin must be a mapping, not a list"),
        ("{pin: {'A B': c}}", "4:21", "no variable's name"),
        ("{pin: {A: 1}}", "4:24", "must be text"),
        ('{pin: {A: "a\\0b"}}', "4:24", "NUL"),
        ('{set: {A: "a\\0b"}}', "4:24", "NUL"),
        ("{set: {A: b}, pin: {A: b}}", "4:21", "pin sets it already"),
        ("{set: {LD_X: b}, forbid: 'LD_*'}", "4:21", "pin it"),
        ("{forbidden: A}", "4:15", "did you mean 'forbid'"),
    ],
)
def test_a_mistake_is_named_with_its_place(environment: str, place: str, said: str) -> None:
    with pytest.raises(PolicyError) as caught:
        policy(environment)
    found = caught.value.message.splitlines()
    assert any(line.startswith(f"p.yaml:{place}: ") and said in line for line in found), found


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("{forbid: [A, B]}", "{forbid: A}"),
        ("{forbid: 'A*'}", "{forbid: AB}"),
        ("{forbid: A}", "{forbid: A, pin: {A: x}}"),
        ("{pin: {A: x}}", "{}"),
    ],
)
def test_a_policy_that_holds_less_is_wider(old: str, new: str) -> None:
    assert compare(policy(old), policy(new)).wider
    assert compare(policy(new), policy(old)).narrower


def test_a_policy_that_only_forbids_more_is_narrower() -> None:
    for old, new in (
        ("{}", "{forbid: A}"),
        ("{forbid: AB}", "{forbid: 'A*'}"),
        ("{}", "{pin: {A: x}}"),
    ):
        assert compare(policy(old), policy(new)).relation == "narrower"
    same = "{forbid: [A, 'B*'], pin: {C: x}}"
    assert compare(policy(same), policy(same)).relation == "equal"
    assert compare(policy("{pin: {A: x}}"), policy("{pin: {A: y}}")).relation == "different"


def test_a_case_says_what_a_program_is_started_with() -> None:
    text = "cases:\n  - {action: shell.execute, target: git, environment: {A: b}, expect: deny}\n"
    (case,) = load_cases(text.encode(), name="c.yaml", workspace="/ws").cases
    assert case.environment == (("A", "b"),)
    with pytest.raises(PolicyError, match="only a program has an environment"):
        load_cases(
            text.replace("shell.execute", "file.read").encode(), name="c.yaml", workspace="/ws"
        )
