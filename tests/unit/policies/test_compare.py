"""Policies compared by their rules: "not wider" must be true, and be said where it is plain."""

from __future__ import annotations

import pytest
from hypothesis import event, given, settings
from hypothesis import strategies as st

from safeclaw.policies.compare import compare
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context, Program
from safeclaw.policies.document import Effect, Policy, PortRange, Rule
from safeclaw.policies.loader import load
from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    Decision,
    FileTarget,
    NameTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
)
from safeclaw.policies.reach import names_to_resolve

_DNS = {"a.x.org": ("10.0.0.1",), "x.org": ("10.0.0.2", "127.0.0.1")}
_FOUND = {"sh": "/usr/bin/dash", "git": "/usr/bin/git", "py": "/usr/bin/py3"}

# ---- random policies

_PATHS = st.sampled_from(
    ["**", "a/**", "a/*", "a/b", "**/*.k", "**/b", "*/b", "/**", "/usr/**", "/ws/a/b", "~/a", "a"]
)
_COMMANDS = st.sampled_from(
    [
        "sh *",
        "git *",
        "git a",
        "git ?",
        "py *",
        "p* *",
        "*",
        "/usr/bin/* *",
        "a/* *",
        "/** *",
        "dash *",
    ]
)
_HOSTS = st.sampled_from(
    ["*", "x.org", "a.x.org", "*.x.org", "10.0.0.0/8", "10.0.0.1", "127.0.0.1", "own-loopback"]
)
_EFFECTS = st.sampled_from([Effect.ALLOW, Effect.ALLOW, Effect.DENY, Effect.ASK])
_FILE_ACTIONS = st.sampled_from(
    ["file", "file.read", "file.write", "file.write.create", "file.write.rename", "*"]
)
_NET_ACTIONS = st.sampled_from(["network", "network.connect", "network.send", "*"])


def _some(values: st.SearchStrategy[str]) -> st.SearchStrategy[tuple[str, ...]]:
    return st.lists(values, min_size=1, max_size=2).map(tuple)


def _rule(**fields: st.SearchStrategy[object]) -> st.SearchStrategy[Rule]:
    return st.builds(Rule, id=st.just(""), line=st.just(0), effect=_EFFECTS, **fields)


_RULES = st.one_of(
    _rule(actions=_some(_FILE_ACTIONS), paths=_some(_PATHS)),
    _rule(actions=_some(_NET_ACTIONS), paths=_some(_PATHS)),
    _rule(actions=st.sampled_from([("shell.execute",), ("*",)]), commands=_some(_COMMANDS)),
    _rule(
        actions=_some(_NET_ACTIONS),
        hosts=_some(_HOSTS),
        ports=st.sampled_from([(), (PortRange(1, 100),), (PortRange(80, 80),)]),
        protocols=st.sampled_from([(), ("tcp",), ("udp",)]),
    ),
    _rule(actions=st.sampled_from([("*",), ("file.read",), ("shell.execute",), ("network",)])),
)


def _policy(rules: list[Rule]) -> Policy:
    named = tuple(
        Rule(
            f"p:{at}", at, one.actions, one.effect, one.paths, one.commands, one.hosts,
            one.ports, one.protocols,
        )
        for at, one in enumerate(rules, 1)
    )  # fmt: skip
    return Policy("p", "1.0", "0" * 64, named)


@st.composite
def _pairs(draw: st.DrawFn) -> tuple[Policy, Policy]:
    """A policy, and one that was made of it by a few edits."""
    old = draw(st.lists(_RULES, min_size=1, max_size=5))
    new = list(old)
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, len(new)))
        match draw(st.sampled_from(["add", "deny", "drop", "swap", "effect", "split"])):
            case "add":
                new.insert(at, draw(_RULES))
            case "deny":
                one = draw(_RULES)
                new.insert(at, _with(one, Effect.DENY))
            case "drop":
                del new[at : at + 1]
            case "swap" if at + 1 < len(new):
                new[at], new[at + 1] = new[at + 1], new[at]
            case "effect" if at < len(new):
                new[at] = _with(new[at], draw(_EFFECTS))
            case "split" if at < len(new):
                new[at] = _halved(new[at])
            case _:
                pass
    pair = (_policy(old), _policy(new))
    return pair if draw(st.booleans()) else (pair[1], pair[0])


def _with(rule: Rule, effect: Effect) -> Rule:
    return Rule(
        "", 0, rule.actions, effect, rule.paths, rule.commands, rule.hosts, rule.ports,
        rule.protocols,
    )  # fmt: skip


def _halved(rule: Rule) -> Rule:
    return Rule(
        "", 0, rule.actions[:1], rule.effect, rule.paths[:1], rule.commands[:1], rule.hosts[:1],
        rule.ports, rule.protocols,
    )  # fmt: skip


_ENDS = st.sampled_from(
    ["/ws/a", "/ws/a/b", "/ws/b", "/ws/a/x.k", "/ws/c/b", "/ws/c", "/ws", "/usr/bin/git",
     "/home/u/a", "/etc/x", "/ws/a/sh", "/usr/bin/dash"]
)  # fmt: skip
_PROGRAMS = st.sampled_from(
    ["/usr/bin/dash", "/usr/bin/git", "/usr/bin/py3", "/usr/bin/sh", "/ws/a/sh", "/ws/a/git",
     "/ws/git", "/usr/bin/other"]
)  # fmt: skip


def _file(action: str, path: str) -> Attempt:
    return Attempt(action, FileTarget(path))


def _move(action: str, path: str, to: str) -> Attempt:
    return Attempt(action, FileTarget(path, to))


def _program(program: str, name: str, arguments: list[str], via: list[str]) -> Attempt:
    return Attempt("shell.execute", ProgramTarget(program, (name, *arguments), tuple(via)))


_PEERS = st.one_of(
    st.builds(
        AddressTarget,
        st.sampled_from(["tcp", "udp"]),
        st.sampled_from(["10.0.0.1", "10.0.0.2", "127.0.0.1", "8.8.8.8", "169.254.1.1"]),
        st.sampled_from([25, 80, 443]),
        st.sampled_from([(), ("x.org",), ("a.x.org",), ("y.org",)]),
        st.booleans(),
    ),
    st.builds(NameTarget, st.sampled_from(["x.org", "a.x.org", "y.org"])),
    st.builds(SocketTarget, st.sampled_from(["/ws/a/b", "/ws/b", "@n", "/etc/x"])),
)
_ATTEMPTS = st.one_of(
    st.builds(
        _file, st.sampled_from(["file.read", "file.write.create", "file.write.modify"]), _ENDS
    ),
    st.builds(_move, st.sampled_from(["file.write.rename", "file.write.link"]), _ENDS, _ENDS),
    st.builds(
        _program,
        _PROGRAMS,
        st.sampled_from(["sh", "git", "py", "dash", "p", "other"]),
        st.lists(st.sampled_from(["a", "b", "long"]), max_size=2),
        st.lists(_PROGRAMS, max_size=2),
    ),
    st.builds(
        Attempt, st.sampled_from(["network.connect", "network.send", "network.bind"]), _PEERS
    ),
    st.just(Attempt("session.start", OtherTarget("agent"))),
    st.just(Attempt("payment.send", OtherTarget("x"))),
)


def _compiled(policy: Policy) -> CompiledPolicy:
    names = names_to_resolve(policy.rules)
    context = Context(
        workspace="/ws",
        home="/home/u",
        protected=("/state",),
        interpreter=("/opt/py",),
        programs=tuple(
            Program(name, f"/usr/bin/{name}", to)
            for name, to in _FOUND.items()
            if any(text.split()[0] == name for rule in policy.rules for text in rule.commands)
            or name == "sh"
        ),
        addresses=tuple((name, _DNS[name]) for name in sorted(names) if name in _DNS),
    )
    return compile_policy(policy, context)


def _level(compiled: CompiledPolicy, attempt: Attempt) -> int:
    """0: refused, 1: asked, 2: allowed, as the walls leave it."""
    if isinstance(attempt.target, ProgramTarget):
        roots = compiled.executable_roots()
        for path in (attempt.target.program, *attempt.target.interpreters):
            if not any(path == root or path.startswith(root.rstrip("/") + "/") for root in roots):
                return 0
    if compiled.evaluate(attempt).decision is Decision.ALLOW:
        return 2
    return 1 if compiled.depends_on_state(attempt) else 0


@settings(max_examples=60, deadline=None)
@given(_pairs(), st.lists(_ATTEMPTS, min_size=12, max_size=40))
def test_what_is_said_to_be_not_wider_lets_through_nothing_more(
    pair: tuple[Policy, Policy], attempts: list[Attempt]
) -> None:
    found = compare(*pair)
    event(found.relation)
    old, new = _compiled(pair[0]), _compiled(pair[1])
    for attempt in attempts:
        before, after = _level(old, attempt), _level(new, attempt)
        assert found.wider or after <= before, attempt
        assert found.narrower or before <= after, attempt


# ---- what must be told apart

_BASE = [
    '{action: file.read, path: "**/*.pem", effect: deny}',
    '{action: [file.read, file.write], path: "src/**", effect: allow}',
    '{action: file.write, path: "docs/**", effect: ask}',
    '{action: shell.execute, command: ["git *", "make *"], effect: allow}',
    '{action: network.connect, host: "*.example.com", port: 443, effect: allow}',
    '{action: "*", effect: deny}',
]

_API = "{action: network.connect, host: api.example.com, port: 443, effect: allow}"


def _loaded(rules: list[str], head: str = "") -> Policy:
    text = 'version: "1.0"\n' + head + "rules:\n" + "".join(f"  - {one}\n" for one in rules)
    return load(text, name="p.yaml")


def _edited(at: int, *rules: str) -> list[str]:
    return [*_BASE[:at], *rules, *_BASE[at + 1 :]]


@pytest.mark.parametrize(
    ("rules", "head"),
    [
        (_edited(1), ""),
        (_edited(1, '{action: file.read, path: "src/**", effect: allow}'), ""),
        (_edited(1, '{action: [file.read, file.write], path: "src/lib/**", effect: allow}'), ""),
        (_edited(1, '{action: [file.read, file.write], path: "src/**", effect: ask}'), ""),
        (_edited(0, _BASE[0], '{action: file, path: "src/x", effect: deny}'), ""),
        (_edited(0, '{action: file.read, path: ["**/*.pem", "**/*.key"], effect: deny}'), ""),
        (_edited(3, '{action: shell.execute, command: "git status *", effect: allow}'), ""),
        (_edited(4, _API), ""),
        (_edited(2, '{action: file.write, path: "docs/**", effect: deny}'), ""),
        (_BASE, "assurance: strict\n"),
        (_BASE, "runtime: none\n"),
    ],
)  # fmt: skip
def test_a_narrower_policy_is_seen_to_be(rules: list[str], head: str) -> None:
    old, new = _loaded(_BASE), _loaded(rules, head)
    assert compare(old, new).relation == "narrower"
    assert compare(new, old).relation == "wider"


@pytest.mark.parametrize(
    ("rules", "head"),
    [
        (_edited(0), ""),
        (_edited(1, '{action: [file.read, file.write], path: "**", effect: allow}'), ""),
        ([_BASE[1], _BASE[0], *_BASE[2:]], ""),
        (_edited(2, '{action: file.write, path: "docs/**", effect: allow}'), ""),
        (_edited(3, _BASE[3], '{action: shell.execute, command: "curl *", effect: ask}'), ""),
        (_edited(4, '{action: network.connect, host: "*.example.com", effect: allow}'), ""),
        (_BASE, "mode: observe\n"),
        (_BASE, "environment: {pass: [TOKEN]}\n"),
    ],
)
def test_a_wider_policy_is_seen_to_be(rules: list[str], head: str) -> None:
    found = compare(_loaded(_BASE), _loaded(rules, head))
    assert found.relation in ("wider", "different")
    assert all(one.what and one.why for one in found.wider)


def test_a_policy_that_says_the_same_otherwise_is_equal() -> None:
    again = [
        '{action: file.read, path: "**/*.pem", effect: deny}',
        '{action: file.read, path: "src/**", effect: allow, reason: "why"}',
        '{action: file.write, path: "src/**", effect: allow}',
        *_BASE[2:],
    ]
    assert compare(_loaded(_BASE), _loaded(again)).relation == "equal"


def test_a_name_that_could_be_reached_kept_files_from_being_moved_there() -> None:
    files = "{action: [file.read, file.write], path: '**', effect: allow}"
    door = "{action: network.connect, path: 'door', effect: allow}"
    old, new = _loaded([files, door]), _loaded([files])
    move = Attempt("file.write.rename", FileTarget("/ws/a", "/ws/door"))
    assert (_level(_compiled(old), move), _level(_compiled(new), move)) == (0, 2)
    (finding,) = compare(old, new).wider
    assert "kept files from being given such names" in finding.why
