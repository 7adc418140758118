"""``safeclaw policy test`` and ``show``, as a person or a pipeline runs them."""

from __future__ import annotations

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest

from safeclaw.daemon.cli.main import main
from safeclaw.errors import PolicyError
from safeclaw.policies.cases import load_cases
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.loader import load
from safeclaw.policies.source import PRESETS, load_file, preset_names

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "src/**", effect: allow}
  - {action: shell.execute, command: "git push *", effect: deny}
  - {action: shell.execute, command: "git *", effect: allow}
"""
CASES = """\
policy: policy.yaml
cases:
  - {action: file.read, target: src/a.py, expect: allow, rule: "policy:1"}
  - {name: no push, action: shell.execute, target: "git push origin main", expect: deny}
  - {action: shell.execute, target: [git, commit, -m, two words], expect: allow}
  - {action: network.connect, target: "192.0.2.1:443", expect: deny}
"""


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    (tmp_path / "policy.yaml").write_text(POLICY)
    (tmp_path / "cases.yaml").write_text(CASES)
    return tmp_path


def test_all_as_expected_is_0(directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "test", str(directory / "cases.yaml")]) == 0
    out, err = capsys.readouterr()
    assert [line.split()[0] for line in out.splitlines()] == ["ok"] * 4
    assert "ok   no push: deny by policy:2" in out
    assert "4 cases, 0 failed" in err


def test_a_mismatch_is_1_and_says_which_rule_decided(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = directory / "cases.yaml"
    cases.write_text(CASES.replace("expect: deny}", "expect: allow}", 1))
    assert main(["policy", "test", str(cases)]) == 1
    out = capsys.readouterr().out
    assert "FAIL no push: deny by policy:2" in out
    assert f"{cases}:4 expects allow; decided at {directory}/policy.yaml:4" in out


def test_a_wrong_rule_is_a_mismatch_too(directory: Path) -> None:
    cases = directory / "cases.yaml"
    cases.write_text(CASES.replace("policy:1", "policy:2"))
    assert main(["policy", "test", str(cases)]) == 1


def test_another_policy_can_be_tested_with_the_same_cases(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["policy", "test", "--json", "--policy", "read-only", str(directory / "cases.yaml")]
    assert main(words) == 1
    value = json.loads(capsys.readouterr().out)
    assert value["policy"] == "read-only.yaml"
    assert [case["ok"] for case in value["cases"]] == [False, True, False, True]


def test_what_a_person_is_asked_about_is_expected_as_ask(
    directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    policy, cases = directory / "policy.yaml", directory / "cases.yaml"
    policy.write_text(POLICY.replace('push *", effect: deny', 'push *", effect: require_approval'))
    assert main(["policy", "test", str(cases)]) == 1
    assert "FAIL no push: ask by policy:2" in capsys.readouterr().out
    cases.write_text(CASES.replace("expect: deny}", "expect: ask}", 1))
    assert main(["policy", "test", str(cases)]) == 0
    assert "ok   no push: ask by policy:2" in capsys.readouterr().out
    cases.write_text(CASES.replace("target: src/a.py, expect: allow", "target: a, expect: ask"))
    assert main(["policy", "test", str(cases)]) == 1


def test_a_pipeline_reads_the_results_as_junit(directory: Path) -> None:
    cases, report = directory / "cases.yaml", directory / "report.xml"
    odd = '<no> & "push"'
    cases.write_text(
        CASES.replace("name: no push", f"name: '{odd}'")
        .replace("expect: d", "expect: a", 1)
        .replace("aeny", "allow")
    )
    assert main(["policy", "test", str(cases), "--junit", str(report)]) == 1
    suite = ElementTree.parse(report).getroot().find("testsuite")
    assert suite is not None
    assert (suite.get("tests"), suite.get("failures")) == ("4", "1")
    (failed,) = [case for case in suite if case.find("failure") is not None]
    assert (failed.get("name"), failed.get("line")) == (odd, "4")
    failure = failed.find("failure")
    assert failure is not None
    assert "deny by policy:2, expects allow" in str(failure.get("message"))


@pytest.mark.parametrize(
    ("text", "place", "said"),
    [
        ("", "1:1", "empty"),
        ("- a\n", "1:1", "mapping"),
        ("policy: x\n", "1:1", "'cases' is missing"),
        ("cases: []\n", "1:8", "at least one"),
        ("cases:\n  - x\n", "2:5", "must be a mapping"),
        ("cases:\n  - {action: file.read, target: a}\n", "2:5", "no 'expect'"),
        ("cases:\n  - {target: a, expect: deny}\n", "2:5", "no 'action'"),
        ("cases:\n  - {action: file.read, target: a, expect: no}\n", "2:44", "allow, deny or ask"),
        ("cases:\n  - {action: file.read, expect: deny}\n", "2:5", "one path is expected"),
        ("cases:\n  - {action: network.send, target: x, expect: deny}\n", "2:36", "no address"),
        (
            "cases:\n  - {action: file.raed, target: x, expect: deny}\n",
            "2:14",
            "file.read'?",
        ),
        ('cases:\n  - {action: shell.execute, target: "\'x", expect: deny}\n', "2:37", "quoting"),
        ("cases:\n  - {action: a.b, target: b, expect: deny, rlue: c}\n", "2:44", "'rule'"),
    ],
)
def test_a_mistake_in_the_cases_is_named_with_line_and_column(
    text: str, place: str, said: str
) -> None:
    with pytest.raises(PolicyError) as caught:
        load_cases(text.encode(), name="c.yaml", workspace="/ws")
    lines = caught.value.message.splitlines()
    assert any(line.startswith(f"c.yaml:{place}: ") and said in line for line in lines), lines


def test_a_file_of_cases_that_is_not_there_is_an_error(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["policy", "test", str(tmp_path / "none.yaml")]) == 125
    assert "cannot be read" in capfd.readouterr().err


@pytest.mark.parametrize("name", preset_names())
def test_what_is_shown_is_the_whole_policy(name: str, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", name]) == 0
    shown = load(capfd.readouterr().out, name=f"{name}.yaml")
    own = load_file(PRESETS / f"{name}.yaml")
    context = Context(workspace="/ws", home="/home/u")
    expected = compile_policy(own, context).rules
    plain = [(r.actions, r.effect, r.paths, r.commands, r.hosts, r.ports) for r in expected]
    assert plain == [
        (r.actions, r.effect, r.paths, r.commands, r.hosts, r.ports) for r in shown.rules
    ]


def test_the_file_itself_is_shown_on_demand(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show", "--source", "default"]) == 0
    assert capfd.readouterr().out == (PRESETS / "default.yaml").read_text()


def test_without_a_name_the_shipped_ones_are_listed(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["policy", "show"]) == 0
    listed = [line.split()[0] for line in capfd.readouterr().out.splitlines()]
    assert listed == list(preset_names())
    assert main(["policy", "show", "--json"]) == 0
    assert list(json.loads(capfd.readouterr().out)) == listed
