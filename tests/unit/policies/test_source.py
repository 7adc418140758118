"""Where a policy comes from, and what is collected for it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from safeclaw.errors import PolicyError
from safeclaw.policies import source
from safeclaw.policies.loader import load

TEXT = 'version: "1.0"\nrules:\n  - {action: shell.execute, command: tool, effect: allow}\n'


def test_the_workspaces_own_policy_comes_before_the_default(tmp_path: Path) -> None:
    assert source.find(None, tmp_path)[0] == "default.yaml"
    own = tmp_path / ".safeclaw" / "policy.yaml"
    own.parent.mkdir()
    own.write_text(TEXT)
    assert source.find(None, tmp_path) == (str(own), TEXT.encode())


def test_a_shipped_policy_is_found_by_name_with_or_without_its_folder(tmp_path: Path) -> None:
    for name in ("production-agent", "roles/production-agent"):
        assert source.find(name, tmp_path)[0] == "roles/production-agent.yaml"


def test_a_name_that_is_nothing_is_refused_with_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(PolicyError) as caught:
        source.find("no-such", tmp_path)
    assert "soc2-baseline" in (caught.value.hint or "")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo.yaml"
    os.mkfifo(fifo)
    for path in (tmp_path / "absent.yaml", tmp_path, fifo):
        with pytest.raises(PolicyError):
            source.load_file(path)


def test_a_dangling_own_policy_is_an_error_not_the_default(tmp_path: Path) -> None:
    (tmp_path / ".safeclaw").mkdir()
    (tmp_path / ".safeclaw" / "policy.yaml").symlink_to("nowhere")
    with pytest.raises(PolicyError):
        source.find(None, tmp_path)


def test_the_context_says_where_bare_names_lead(tmp_path: Path) -> None:
    real = tmp_path / "real-tool"
    real.write_text("#!/bin/sh\n")
    real.chmod(0o755)
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "tool").symlink_to(real)
    policy = load(TEXT, name="p.yaml")
    found = source.context(
        policy, workspace=tmp_path, home=tmp_path, path=f"{tmp_path}/bin", resolve=False
    )
    (tool,) = [item for item in found.programs if item.name == "tool"]
    assert (tool.found, tool.canonical) == (f"{tmp_path}/bin/tool", str(real))


def test_the_context_says_where_refusing_rules_lead_by_links(tmp_path: Path) -> None:
    (tmp_path / "real" / "keys").mkdir(parents=True)
    (tmp_path / "linked").symlink_to("real")
    (tmp_path / "rm").symlink_to("real/tool")
    policy = load(
        'version: "1.0"\nrules:\n'
        '  - {action: file, path: ["linked/keys/**", "real/**", "/proc/self/**"], effect: deny}\n'
        '  - {action: shell.execute, command: "./{rm,mv} *", effect: ask}\n'
        '  - {action: file, path: "linked/allowed/**", effect: allow}\n'
        f'  - {{action: file, path: "{"a/" * 100_000}b", effect: deny}}\n',
        name="p.yaml",
    )
    found = source.context(policy, workspace=tmp_path, home=tmp_path, resolve=False)
    assert dict(found.leads) == {
        f"{tmp_path}/linked/keys": f"{tmp_path}/real/keys",
        f"{tmp_path}/rm": f"{tmp_path}/real/tool",
    }
    assert set(found.read_only) == {f"{tmp_path}/linked", f"{tmp_path}/rm"}
