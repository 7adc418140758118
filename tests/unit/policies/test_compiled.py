"""Verdicts: which rule decides, and what no rule can open."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context, Program
from safeclaw.policies.document import Effect, Policy, Rule
from safeclaw.policies.glob import path_globs
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
from tests.seed_policies import CC61
from tests.unit.policies.verdicts import CONTEXT, ask, connect, policy, run

ALL_FILES = "action: file, path: '/**', effect: allow"


def test_the_seeds_policy_decides_as_written_and_lets_the_interpreter_start() -> None:
    compiled = compile_policy(load(CC61, name="cc61.yaml"), CONTEXT)
    assert ask(compiled, "file.read", "/ws/src/a") == ("allow", "cc61:1")
    assert ask(compiled, "file.write.create", "/ws/src/a") == ("allow", "cc61:2")
    assert ask(compiled, "file.read", "/ws/secrets/k") == ("deny", "cc61:3")
    assert ask(compiled, "file.read", "/ws/other") == ("deny", "cc61:5")
    assert ask(compiled, "file.read", "/usr/lib/libc.so.6") == ("allow", "runtime:libraries")
    assert ask(compiled, "file.write.modify", "/dev/null") == ("allow", "runtime:sinks")
    assert ask(compiled, "file.read", "/etc/shadow") == ("deny", "cc61:5")
    assert ask(compiled, "file.write.create", "/tmp/x") == ("deny", "cc61:5")
    assert run(compiled, "/usr/bin/sudo", "sudo", "ls") == "deny"
    assert run(compiled, "/usr/bin/dash", "sh", "-c", "x") == "allow"
    start = compiled.evaluate(Attempt("session.start", OtherTarget("agent")))
    assert start.rule == "runtime:start"


def test_the_first_matching_rule_decides_and_no_match_is_a_deny() -> None:
    compiled = policy(
        "action: file.read, path: 'a/b', effect: deny",
        "action: file.read, path: 'a/**', effect: allow",
    )
    assert ask(compiled, "file.read", "/ws/a/b") == ("deny", "p:1")
    assert ask(compiled, "file.read", "/ws/a/c") == ("allow", "p:2")
    assert ask(compiled, "file.write.create", "/ws/a/c") == ("deny", "default-deny")


def test_a_specific_deny_wins_over_the_runtime_and_none_turns_it_off() -> None:
    denied = policy("action: file.read, path: '/usr/share/**', effect: deny")
    assert ask(denied, "file.read", "/usr/share/x")[0] == "deny"
    assert ask(denied, "file.read", "/usr/lib/x")[0] == "allow"
    shell = policy("action: shell.execute, command: 'bash *', effect: deny")
    assert run(shell, "/usr/bin/bash", "bash", "-c", "x") == "deny"
    bare = policy("action: file.read, path: x, effect: allow", extra="runtime: none\n")
    assert ask(bare, "file.read", "/usr/lib/x") == ("deny", "default-deny")


def test_protected_paths_are_out_of_every_rules_reach() -> None:
    compiled = policy(ALL_FILES, "action: network, path: '/**', effect: allow")
    assert ask(compiled, "file.read", "/state") == ("deny", "protected")
    assert ask(compiled, "file.read", "/state/journal") == ("deny", "protected")
    assert ask(compiled, "file.read", "/statement")[0] == "allow"
    socket = Attempt("network.connect", SocketTarget("/state/broker.sock"))
    assert compiled.evaluate(socket).rule == "protected"
    assert ask(compiled, "file.read", "/ws/.safeclaw/policy.yaml")[0] == "allow"
    for action in ("file.write.modify", "file.write.delete", "file.write.metadata"):
        assert ask(compiled, action, "/ws/.safeclaw/policy.yaml") == ("deny", "protected")
    rename = "file.write.rename"
    assert ask(compiled, rename, "/ws/.safeclaw", "/ws/x") == ("deny", "protected")
    assert ask(compiled, rename, "/ws/x", "/ws/.safeclaw") == ("deny", "protected")


@pytest.mark.parametrize("path", ["relative", "/a/../b", "/a/..", ""])
def test_a_path_that_is_not_canonical_is_denied(path: str) -> None:
    assert ask(policy(ALL_FILES), "file.read", path)[0] == "deny"


def test_both_ends_of_a_move_must_be_allowed_and_the_source_readable() -> None:
    compiled = policy(
        "action: file.read, path: 'secrets/**', effect: deny",
        "action: file.write, path: 'out/**', effect: deny",
        "action: file, path: '**', effect: allow",
    )
    for action in ("file.write.rename", "file.write.link"):
        assert ask(compiled, action, "/ws/a", "/ws/b")[0] == "allow"
        assert ask(compiled, action, "/ws/secrets/k", "/ws/b") == ("deny", "p:1")
        assert ask(compiled, action, "/ws/a", "/ws/out/b") == ("deny", "p:2")
        assert ask(compiled, action, "/ws/out/b", "/ws/a") == ("deny", "p:2")


def test_a_file_gets_no_second_name_under_which_more_may_be_done_to_it() -> None:
    compiled = policy(
        "action: file.write.modify, path: 'locked/**', effect: deny",
        "action: file.write.metadata, path: 'asked/**', effect: ask",
        "action: file, path: '**', effect: allow",
    )
    link = "file.write.link"
    assert ask(compiled, link, "/ws/locked/a", "/ws/b") == ("deny", "p:1")
    assert ask(compiled, link, "/ws/asked/a", "/ws/b") == ("deny", "p:2")
    assert ask(compiled, link, "/ws/b", "/ws/locked/a")[0] == "allow"


def test_a_move_cannot_carry_a_directory_past_a_rule() -> None:
    compiled = policy(
        "action: file.read, path: ['deep/secrets/**', '**/.git/hooks/**'], effect: deny",
        "action: file, path: ['**', '/tmp/**'], effect: allow",
    )
    rename = "file.write.rename"
    assert ask(compiled, rename, "/ws/deep", "/ws/x") == ("deny", "p:1")
    assert ask(compiled, rename, "/ws/a/.git", "/ws/a/g") == ("deny", "p:1")
    assert ask(compiled, rename, "/ws/a/g", "/ws/a/.git") == ("deny", "p:1")
    assert ask(compiled, rename, "/ws/a", "/tmp/a") == ("deny", "p:1")
    assert ask(compiled, rename, "/ws/a/b", "/ws/c/d")[0] == "allow"
    assert ask(compiled, "file.write.link", "/ws/a", "/tmp/a")[0] == "allow"


def test_a_socket_gets_no_name_under_which_it_may_be_reached() -> None:
    compiled = policy(
        "action: network.connect, path: '**/*.private', effect: deny",
        "action: network.send, path: 'asked', effect: ask",
        "action: network.connect, path: ['**/open', 'run/*.sock'], effect: allow",
        "action: file, path: ['**', '/tmp/**'], effect: allow",
    )
    link, rename = "file.write.link", "file.write.rename"
    for action in (link, rename):
        assert ask(compiled, action, "/ws/a", "/ws/open")[0] == "deny"
        assert ask(compiled, action, "/ws/a.private", "/ws/open")[0] == "deny"
        assert ask(compiled, action, "/ws/a", "/ws/run/a.sock")[0] == "deny"
        assert ask(compiled, action, "/ws/a", "/ws/asked")[0] == "deny"
        assert ask(compiled, action, "/ws/open", "/ws/a/open")[0] == "allow"
        assert ask(compiled, action, "/ws/open", "/ws/a")[0] == "allow"
        assert ask(compiled, action, "/ws/a.private", "/ws/b")[0] == "allow"
        assert ask(compiled, action, "/ws/run/a.sock", "/ws/b/c")[0] == "allow"
    # nor does a directory take it there
    assert ask(compiled, rename, "/ws/a", "/ws/run") == ("deny", "p:3")
    assert ask(compiled, rename, "/ws/run", "/ws/a")[0] == "allow"
    assert ask(compiled, rename, "/ws/a", "/ws/b")[0] == "allow"


def test_a_bare_name_allows_only_what_the_agent_cannot_write() -> None:
    compiled = policy(
        "action: shell.execute, command: 'git *', effect: allow",
        "action: file.write, path: '**', effect: allow",
    )
    assert run(compiled, "/usr/bin/git", "git", "status") == "allow"
    assert run(compiled, "/ws/git", "git", "status") == "deny"
    assert run(compiled, "/usr/bin/rm", "git", "status") == "deny"
    assert compiled.writable("/ws/git")
    assert not compiled.writable("/usr/bin/git")
    linked = policy(
        "action: shell.execute, command: 'git *', effect: allow",
        "action: file.write.link, path: 'bin/**', effect: allow",
    )
    assert run(linked, "/ws/bin/git", "git", "status") == "deny"


def test_a_deny_by_name_holds_whatever_the_program_calls_itself() -> None:
    compiled = policy(
        "action: shell.execute, command: 'sudo *', effect: deny",
        "action: shell.execute, effect: allow",
        context=Context(
            "/ws", "/h", programs=(Program("sudo", "/usr/bin/sudo", "/usr/bin/sudo-rs"),)
        ),
    )
    assert run(compiled, "/usr/bin/sudo", "x") == "deny"
    assert run(compiled, "/usr/bin/other", "/bin/sudo", "x") == "deny"
    assert run(compiled, "/usr/bin/sudo-rs", "x") == "deny"
    assert run(compiled, "/usr/bin/sudo", "sudo") == "deny"
    assert run(compiled, "/usr/bin/ls", "ls") == "allow"


def test_a_name_leads_where_the_context_says_if_the_program_is_called_so() -> None:
    context = Context("/ws", "/h", programs=(Program("ls", "/bin/ls", "/bin/busybox"),))
    compiled = policy("action: shell.execute, command: 'ls *', effect: allow", context=context)
    assert run(compiled, "/bin/busybox", "ls", "-l") == "allow"
    assert run(compiled, "/bin/busybox", "rm", "-r") == "deny"
    assert run(compiled, "/bin/busybox", "busybox", "rm") == "deny"


def test_arguments_match_one_by_one_and_a_last_star_takes_the_rest() -> None:
    compiled = policy(
        "action: shell.execute, command: 'kubectl delete *', effect: deny",
        "action: shell.execute, command: ['kubectl apply *', "
        "'kubectl get {pod,node}'], effect: allow",
        "action: shell.execute, command: \"say 'two words' a*/b\", effect: allow",
        "action: shell.execute, command: './tools/* *', effect: allow",
        "action: shell.execute, command: 'id', effect: allow",
    )
    kubectl = "/usr/bin/kubectl"
    assert run(compiled, kubectl, "kubectl", "apply", "-f", "x") == "allow"
    assert run(compiled, kubectl, "kubectl", "apply") == "allow"
    assert run(compiled, kubectl, "kubectl", "delete", "x") == "deny"
    assert run(compiled, kubectl, "kubectl") == "deny"
    assert run(compiled, kubectl, "kubectl", "get", "node") == "allow"
    assert run(compiled, kubectl, "kubectl", "get", "node", "x") == "deny"
    assert run(compiled, "/usr/bin/say", "say", "two words", "ax/y/b") == "allow"
    assert run(compiled, "/usr/bin/id", "id", "-u") == "deny"
    assert run(compiled, "/ws/tools/x", "x", "1") == "allow"
    assert run(compiled, "/ws/tools/d/x", "x", "1") == "deny"


def test_every_interpreter_of_a_script_must_not_be_denied() -> None:
    compiled = policy(
        "action: shell.execute, command: ['python3.11 *', 'sh -x *'], effect: deny",
        "action: shell.execute, command: '*', effect: allow",
    )
    assert run(compiled, "/usr/bin/tool", "tool", via=("/usr/bin/perl",)) == "allow"
    assert run(compiled, "/usr/bin/tool", "tool", via=("/usr/bin/python3.11",)) == "deny"


def test_ask_is_denied_while_nobody_can_approve() -> None:
    compiled = policy("action: file.read, path: x, effect: ask, reason: careful")
    attempt = Attempt("file.read", FileTarget("/ws/x"))
    verdict = compiled.evaluate(attempt)
    assert verdict.decision is Decision.DENY
    assert "needs approval" in verdict.reason
    assert compiled.depends_on_state(attempt)
    assert not compiled.depends_on_state(Attempt("file.read", FileTarget("/ws/y")))


def test_addresses_ports_and_protocols() -> None:
    compiled = policy(
        "action: network.connect, host: 10.1.0.0/16, effect: deny",
        "action: network.connect, host: [10.0.0.0/8, '2001:db8::/32'], port: [443, 8000-8002], "
        "protocol: tcp, effect: allow",
    )
    assert connect(compiled, "10.2.3.4") == "allow"
    assert connect(compiled, "10.2.3.4", 8001) == "allow"
    assert connect(compiled, "10.2.3.4", 80) == "deny"
    assert connect(compiled, "10.2.3.4", 443, "udp") == "deny"
    assert connect(compiled, "10.1.3.4") == "deny"
    assert connect(compiled, "::ffff:10.2.3.4") == "allow"
    assert connect(compiled, "::ffff:10.1.3.4") == "deny"
    assert connect(compiled, "2001:db8::9") == "allow"
    assert connect(compiled, "nonsense") == "deny"


def test_loopback_and_metadata_addresses_must_be_named() -> None:
    wide = policy("action: network.connect, host: ['*', 0.0.0.0/0], effect: allow")
    for address in ("127.0.0.1", "169.254.169.254", "0.0.0.0", "::1", "fe80::1", "::ffff:7f00:1"):
        assert connect(wide, address) == "deny"
    for cloud in ("100.100.100.200", "168.63.129.16", "fd20:ce::254", "64:ff9b::100.100.100.200"):
        assert connect(wide, cloud) == "deny"
    assert connect(wide, "192.0.2.1") == "allow"
    named = policy("action: network.connect, host: [localhost, 169.254.169.254], effect: allow")
    for address in ("127.0.0.1", "169.254.169.254", "::1"):
        assert connect(named, address) == "allow"
    assert connect(named, "169.254.169.253") == "deny"


def test_what_is_refused_has_no_translated_spelling() -> None:
    compiled = policy(
        "action: network.connect, host: 192.0.2.66, effect: deny",
        "action: network.connect, host: ['*', '::/0'], effect: allow",
    )
    # NAT64, 6to4, and Teredo with its client's address inverted
    for address in ("64:ff9b::192.0.2.66", "2002:c000:242::1", "2001:0:102:304::3fff:fdbd"):
        assert connect(compiled, address) == "deny"
    assert connect(compiled, "64:ff9b::192.0.2.67") == "allow"
    allowed = policy("action: network.connect, host: 192.0.2.66, effect: allow")
    assert connect(allowed, "64:ff9b::192.0.2.66") == "deny"


def test_names_match_what_they_resolve_to_but_never_this_host() -> None:
    context = Context(
        "/ws",
        "/h",
        addresses=(("a.example.com", ("192.0.2.1", "127.0.0.1")), ("b.org", ("192.0.2.2",))),
    )
    compiled = policy(
        "action: network.connect, host: '*.example.com', effect: allow", context=context
    )
    assert connect(compiled, "192.0.2.1") == "allow"
    assert connect(compiled, "192.0.2.2") == "deny"
    assert connect(compiled, "127.0.0.1") == "deny"


def test_a_denied_name_that_nobody_resolved_denies() -> None:
    compiled = policy(
        "action: network.connect, host: unknown.example, effect: deny",
        "action: network.connect, effect: allow",
    )
    assert connect(compiled, "192.0.2.1") == "deny"


def test_a_socket_must_be_named_by_path() -> None:
    compiled = policy(
        "action: network.connect, path: 'run/*.sock', effect: allow", "action: '*', effect: allow"
    )
    docker = Attempt("network.connect", SocketTarget("/var/run/docker.sock"))
    own = Attempt("network.connect", SocketTarget("/ws/run/a.sock"))
    assert compiled.evaluate(docker).decision is Decision.DENY
    assert compiled.evaluate(own).decision is Decision.ALLOW


def test_the_reach_of_a_policy() -> None:
    compiled = policy(
        "action: file.read, path: ['src/**', 'a/*/b', '~/.x', '/opt/{p,q}/r'], effect: allow",
        "action: file.read, path: '/never/**', effect: deny",
        "action: shell.execute, command: '/opt/tool/bin/x *', effect: allow",
    )
    view = compiled.view()
    for path in (
        "/ws/src",
        "/ws/a",
        "/home/u/.x",
        "/opt/p/r",
        "/opt/q/r",
        "/opt/tool/bin/x",
        "/usr",
    ):
        assert path in view
    assert "/never" not in view
    assert "/opt/tool/bin/x" in compiled.executable_roots()
    assert not compiled.names_network()
    assert policy("action: network.connect, host: a.org, effect: allow").names_network()
    assert policy(ALL_FILES).view() == ("/",)


def test_a_program_that_the_agent_may_make_runs_from_a_directory_that_stays() -> None:
    """The kernel's floor holds the file that was there at the start, and no later one."""
    made = "action: file.write, path: ['build/**', 'prog', '/tmp/out/**'], effect: allow"
    for program, root in (
        ("./prog", "/ws"),
        ("./build/a/prog *", "/ws"),
        ("./tools/prog", "/ws/tools/prog"),
        ("/tmp/out/prog", "/tmp"),
        ("/opt/tool/prog", "/opt/tool/prog"),
    ):
        run = f"action: shell.execute, command: '{program}', effect: allow"
        assert root in policy(run, made).executable_roots(), program
    everything = "action: file.write, path: ['**', '/opt/**'], effect: allow"
    run = "action: shell.execute, command: ['./prog', '/opt/tool/prog'], effect: allow"
    assert {"/ws", "/opt"} <= {*policy(run, everything).executable_roots()}
    asked = made.replace("effect: allow", "effect: ask")
    run = "action: shell.execute, command: ./prog, effect: allow"
    assert "/ws" in policy(run, asked).executable_roots()


def test_actions_take_everything_below_them() -> None:
    compiled = policy(
        "action: file.write.delete, effect: deny",
        "action: file.write.*, path: '**', effect: allow",
        "action: ticket.*, effect: allow",
    )
    assert ask(compiled, "file.write.delete", "/ws/a") == ("deny", "p:1")
    assert ask(compiled, "file.write.create", "/ws/a") == ("allow", "p:2")
    close = Attempt("ticket.close", OtherTarget("7"))
    assert compiled.evaluate(close).decision is Decision.ALLOW
    assert compiled.evaluate(Attempt("ticketx.close", OtherTarget("7"))).decision is Decision.DENY


GLOBS = st.sampled_from(
    ["**", "a/**", "a/*", "**/b", "a/b", "*", "*/b/**", "/ws/**", "/**/b", "{a,b}/?"]
)
PATHS = st.lists(st.sampled_from("abc"), max_size=4).map(lambda names: "/".join(["/ws", *names]))


@given(st.lists(st.tuples(GLOBS, st.sampled_from(list(Effect))), min_size=1, max_size=8), PATHS)
def test_the_index_finds_the_same_rule_as_trying_all(
    rules: list[tuple[str, Effect]], path: str
) -> None:
    built = tuple(
        Rule(f"p:{at}", at, ("file.read",), effect, paths=(glob,))
        for at, (glob, effect) in enumerate(rules, 1)
    )
    compiled = compile_policy(Policy("p", "1.0", "", built), CONTEXT)
    expected = next(
        (
            rule.id
            for rule in built
            if any(g.match(path) for g in path_globs(rule.paths[0], workspace="/ws", home="/h"))
        ),
        "default-deny",
    )
    assert compiled.evaluate(Attempt("file.read", FileTarget(path))).rule == expected


def many(count: int) -> CompiledPolicy:
    rules = [
        Rule(f"p:{at}", at, ("file.read",), Effect.DENY, paths=(f"data/d{at}/**", f"**/n{at}"))
        for at in range(count)
    ]
    rules += [
        Rule(f"c:{at}", at, ("shell.execute",), Effect.DENY, commands=(f"tool{at} *",))
        for at in range(count)
    ]
    rules += [
        Rule(f"h:{at}", at, ("network",), Effect.DENY, hosts=(f"10.{at >> 8}.{at & 255}.0/24",))
        for at in range(count)
    ]
    rules.append(Rule("p:last", 0, ("file.read",), Effect.ALLOW, paths=("**",)))
    return compile_policy(Policy("p", "1.0", "", tuple(rules)), CONTEXT)


def test_evaluation_takes_the_same_steps_for_ten_rules_and_ten_thousand(
    steps: Callable[[Callable[[], object]], int],
) -> None:
    few, lots = many(10), many(10_000)
    for attempt in (
        Attempt("file.read", FileTarget("/ws/src/a/b/c.py")),
        Attempt("shell.execute", ProgramTarget("/usr/bin/git", ("git", "status"))),
        Attempt("network.connect", AddressTarget("tcp", "192.0.2.1", 443)),
    ):
        few.evaluate(attempt)
        lots.evaluate(attempt)
        assert steps(partial(few.evaluate, attempt)) == steps(partial(lots.evaluate, attempt)) > 0
