"""``safeclaw policy check`` and ``explain``, as a person runs them."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from safeclaw.daemon.cli.policy import check, explain, policy_group
from safeclaw.errors import PolicyError, UsageError
from safeclaw.policies.source import PRESETS

BAD = 'version: "1.0"\nrules:\n  - {action: file.raed, effect: alow}\n'


def test_check_prints_every_problem_and_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad = tmp_path / "bad.yaml"
    bad.write_text(BAD)
    assert check([str(bad), str(PRESETS / "default.yaml"), str(tmp_path / "absent.yaml")]) == 1
    out = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in out] == [
        f"{bad}:3:14", f"{bad}:3:33", f"{tmp_path}/absent.yaml",
    ]  # fmt: skip


def test_check_is_silent_on_stdout_about_good_files(capsys: pytest.CaptureFixture[str]) -> None:
    assert (
        check([str(path) for path in sorted(PRESETS.rglob("*.yaml")) if path.stem != "runtime"])
        == 0
    )
    assert capsys.readouterr().out == ""


def test_check_without_a_file_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        check([])


def test_explain_follows_a_symlink_to_where_it_leads(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "src").mkdir()
    (tmp_path / "secrets").mkdir()
    (tmp_path / "src" / "link").symlink_to("../secrets/key")
    where = ["--policy", "soc2-baseline", "--workspace", str(tmp_path)]
    assert explain([*where, "file.read", "src/link"]) == 0
    out = capsys.readouterr().out
    assert "verdict: deny\nrule: soc2-baseline:3\nline: soc2-baseline.yaml:14\n" in out
    assert explain([*where, "file.read", "src/other"]) == 0
    assert "verdict: allow" in capsys.readouterr().out


def test_explain_takes_a_commands_own_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert explain(["--policy", "production-agent", "shell.execute", "kubectl", "apply", "-f"]) == 0
    assert "rule: production-agent:2" in capsys.readouterr().out


def test_explain_of_an_unknown_policy_is_a_policy_error() -> None:
    with pytest.raises(PolicyError):
        explain(["--policy", "nobody", "file.read", "x"])


@pytest.mark.parametrize("action", ["file.raed", "fiel", "", "File.read"])
def test_explain_of_what_no_rule_can_say_is_a_usage_error(action: str) -> None:
    with pytest.raises(UsageError, match="action"):
        explain([action, "x"])


def test_the_group_has_its_commands() -> None:
    assert set(policy_group.list_commands(click.Context(policy_group))) == {
        "approve", "check", "diff", "explain", "history", "pending", "refuse", "rollback", "schema",
        "show", "suggest", "test", "text",
    }  # fmt: skip
