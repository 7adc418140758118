"""The policies that come along: what each of them opens, and what none does."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.loader import load
from safeclaw.policies.source import PRESETS, find, load_file, preset_names
from tests.unit.policies.verdicts import CONTEXT, ask, connect, run


@pytest.mark.parametrize("name", preset_names())
def test_every_shipped_policy_loads_and_denies_secrets_writes_and_the_network(name: str) -> None:
    compiled = compile_policy(load_file(PRESETS / f"{name}.yaml"), CONTEXT)
    assert ask(compiled, "file.read", "/ws/secrets/key")[0] == "deny"
    assert ask(compiled, "file.read", "/home/u/.ssh/id_rsa")[0] == "deny"
    assert ask(compiled, "file.write.modify", "/etc/passwd")[0] == "deny"
    assert connect(compiled, "192.0.2.1") == "deny"
    assert run(compiled, "/usr/bin/sudo", "sudo", "ls") == "deny"
    assert ask(compiled, "file.read", "/usr/lib/x.so")[0] == "allow"
    assert (PRESETS / "runtime.yaml").is_file()


def test_what_any_program_may_read_of_certificates_has_no_private_keys() -> None:
    compiled = compile_policy(load_file(PRESETS / "default.yaml"), CONTEXT)
    for path in ("ca-trust/extracted/pem/tls-ca-bundle.pem", "tls/cert.pem", "tls/openssl.cnf"):
        assert ask(compiled, "file.read", f"/etc/pki/{path}")[0] == "allow"
    for path in ("tls/private/localhost.key", "entitlement/1-key.pem", "consumer/key.pem"):
        assert ask(compiled, "file.read", f"/etc/pki/{path}")[0] == "deny"


def test_the_default_policy_opens_the_workspace_but_not_its_secrets() -> None:
    shown, text = find("default", Path("/ws"))
    compiled = compile_policy(load(text, name=shown), CONTEXT)
    assert ask(compiled, "file.write.create", "/ws/a/b.py")[0] == "allow"
    assert ask(compiled, "file.write.create", "/tmp/x")[0] == "allow"
    assert ask(compiled, "file.write.rename", "/ws/a", "/tmp/a")[0] == "allow"
    for path in ("/ws/.env", "/ws/x/.env.local", "/ws/deep/id_rsa", "/ws/tls/server.pem"):
        assert ask(compiled, "file.read", path)[0] == "deny"
    assert ask(compiled, "file.read", "/ws/v/site-packages/certifi/cacert.pem")[0] == "allow"
    assert ask(compiled, "file.read", "/etc/ssl/certs/ca.pem")[0] == "allow"
    assert ask(compiled, "file.write.create", "/ws/.git/hooks/pre-commit")[0] == "deny"
    assert ask(compiled, "file.write.rename", "/ws/.git", "/ws/g")[0] == "deny"
    assert run(compiled, "/usr/bin/git", "git", "status") == "allow"


@pytest.mark.parametrize(
    ("name", "own", "not_own"),
    [("claude-code", ".claude-safeclaw", ".claude"), ("codex", ".codex-safeclaw", ".codex")],
)
def test_an_agents_policy_opens_its_own_state_and_not_what_is_obeyed_outside(
    name: str, own: str, not_own: str
) -> None:
    compiled = compile_policy(load_file(PRESETS / f"{name}.yaml"), CONTEXT)
    assert ask(compiled, "file.write.create", f"/home/u/{own}/sessions/1")[0] == "allow"
    for path in (f"/home/u/{not_own}/settings.json", f"/ws/{not_own}/hooks/start", "/ws/.env"):
        assert ask(compiled, "file.write.create", path)[0] == "deny"
    assert ask(compiled, "file.write.create", "/ws/src/a.py")[0] == "allow"
