"""Rules by host name, and the agent's own loopback."""

from __future__ import annotations

from pathlib import Path

from safeclaw.policies import source
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.loader import load
from safeclaw.policies.model import AddressTarget, Attempt, NameTarget, SocketTarget
from safeclaw.policies.source import find, load_file


def policy(*rules: str) -> CompiledPolicy:
    text = 'version: "1.0"\nrules:\n' + "".join(f"  - {{{rule}}}\n" for rule in rules)
    return compile_policy(load(text, name="p.yaml"), Context("/ws", "/h"))


def connect(compiled: CompiledPolicy, address: str, *names: str, own: bool = False) -> str:
    target = AddressTarget("tcp", address, 443, names, own)
    return str(compiled.evaluate(Attempt("network.connect", target)).decision)


def resolve(compiled: CompiledPolicy, name: str) -> str:
    return str(compiled.evaluate(Attempt("network.resolve", NameTarget(name))).decision)


def test_a_name_allows_the_addresses_that_were_found_under_it() -> None:
    compiled = policy("action: network.connect, host: ['*.good.org', one.com], effect: allow")
    assert connect(compiled, "203.0.113.1", "api.good.org") == "allow"
    assert connect(compiled, "203.0.113.1", "a.b.good.org") == "allow"
    assert connect(compiled, "203.0.113.1", "one.com") == "allow"
    for names in ((), ("good.org",), ("notgood.org",), ("x.one.com",), ("good.org.evil.net",)):
        assert connect(compiled, "203.0.113.1", *names) == "deny"
    assert connect(compiled, "127.0.0.1", "api.good.org") == "deny"
    assert connect(compiled, "169.254.169.254", "api.good.org") == "deny"


def test_only_names_that_some_rule_could_allow_are_looked_up() -> None:
    compiled = policy(
        "action: network.connect, host: bad.good.org, effect: deny",
        "action: network.connect, host: half.good.org, port: 80, effect: deny",
        "action: network.send, host: '*.good.org', effect: allow",
        "action: '*', effect: deny",
    )
    assert resolve(compiled, "api.good.org") == "allow"
    assert resolve(compiled, "half.good.org") == "allow"
    assert resolve(compiled, "evil.net") == "deny"
    wide = policy("action: network, host: bad.org, effect: deny", "action: network, effect: allow")
    assert resolve(wide, "bad.org") == "deny"
    assert resolve(wide, "any.org") == "allow"


def test_a_refused_name_counts_where_the_name_is_known_and_everywhere_else_it_may() -> None:
    compiled = policy(
        "action: network, host: '*.bad.org', effect: deny", "action: network, effect: allow"
    )
    assert connect(compiled, "203.0.113.1", "x.bad.org") == "deny"
    assert connect(compiled, "203.0.113.1", "good.org") == "allow"
    assert connect(compiled, "203.0.113.1") == "deny"


def test_the_own_loopback_is_the_runtimes_to_allow_and_a_rules_to_refuse() -> None:
    own = Attempt("network.bind", SocketTarget("@mine"))
    plain = policy("action: '*', effect: deny")
    assert connect(plain, "127.0.0.1", own=True) == "allow"
    assert connect(plain, "127.0.0.1") == "deny"
    assert plain.evaluate(own).rule == "runtime:own-loopback"
    assert not plain.names_network()
    refused = policy("action: network, host: own-loopback, effect: deny")
    assert connect(refused, "127.0.0.1", own=True) == "deny"
    assert str(refused.evaluate(own).decision) == "deny"


def test_the_coding_agents_policy_names_its_hosts_and_keeps_the_defaults_secrets() -> None:
    name, text = find("coding-agent", Path("/nowhere"))
    preset = load(text, name=name)
    default = load_file(source.PRESETS / "default.yaml")
    secrets = [rule.paths for rule in default.rules if rule.paths]
    assert [rule.paths for rule in preset.rules if rule.paths] == secrets
    compiled = compile_policy(preset, Context("/ws", "/h"))
    assert resolve(compiled, "api.github.com") == "allow"
    assert resolve(compiled, "example.org") == "deny"
    assert connect(compiled, "203.0.113.1", "github.com") == "allow"
    assert connect(compiled, "203.0.113.1") == "deny"
