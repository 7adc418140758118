"""``safeclaw audit summary``: counts, what rises, and markup that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType
from tests.journals import DAY, Host, decision
from tests.unit.daemon.auditing import run
from tests.unit.daemon.fortnight import ALL, state

__all__ = ["state"]


def test_a_summary_counts_what_there_is(state: Path) -> None:
    value = json.loads(run("summary", "--state", str(state), *ALL, "--json").stdout)
    assert (value["evaluations"], value["allowed"], value["denied"]) == (280, 245, 35)
    assert value["top_denied_actions"] == [["file.read", 28], ["shell.execute", 7]]
    agents = {item["name"]: item["allowed"] + item["denied"] for item in value["agents"]}
    assert agents == {"[bold]x": 266, "other": 14}
    rules = {item["name"]: item["denied"] for item in value["rules"]}
    assert rules == {"p:1": 35, "p:2": 0}
    assert value["events"]["fault"] == 1
    assert [item["decisions"] for item in value["policies"]] == [140, 140]
    drift = "\n".join(value["drift"])
    assert "changed 1 times without a new version" in drift
    assert "1 of 3 rules were never used" in drift
    assert "denials rise: 24 in the last week, 10" in drift


def test_what_was_only_observed_is_not_called_denied(tmp_path: Path) -> None:
    place = tmp_path / "observed"
    with Journal.open(place / "journal") as journal:
        for number, observe in enumerate((True, False)):
            detail = {"observe": observe, "walls": {"missing": ["landlock"] * (1 - number)}}
            journal.append(
                Entry(type=RecordType.SESSION_START, session=f"s-{number}", detail={**detail})
            )
            for attempt in range(3):
                journal.append(
                    Entry(
                        type=RecordType.DECISION,
                        session=f"s-{number}",
                        agent="a",
                        attempt=attempt,
                        action="file.read",
                        target={"path": "/srv/x"},
                        decision="deny",
                        enforced_by="observe" if observe else "openat",
                        rule="p:1",
                    )
                )
    value = json.loads(run("summary", "--state", str(place), *ALL, "--json").stdout)
    assert (value["evaluations"], value["allowed"], value["denied"]) == (6, 0, 3)
    assert value["observed"] == 3
    assert value["top_denied_targets"] == [["/srv/x", 3]]
    drift = "\n".join(value["drift"])
    assert "1 sessions were only observed" in drift
    assert "3 attempts that the policy denies were let through" in drift
    assert "1 sessions ran without landlock" in drift
    shown = run("summary", "--state", str(place), *ALL).stdout
    assert "3 only observed and let through" in shown
    ecs = [json.loads(line) for line in
           run("export", "--state", str(place), "--format", "ecs").stdout.splitlines()]  # fmt: skip
    outcomes = [one["event"]["outcome"] for one in ecs if "outcome" in one["event"]]
    assert outcomes == ["success"] * 3 + ["failure"] * 3


def test_denials_that_come_from_nothing_rise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(monkeypatch)
    place = tmp_path / "rising"
    with host.open(place / "journal") as journal:
        for day in range(20):
            for number in range(5):
                denied = day > 14
                journal.append(
                    Entry(
                        type=RecordType.DECISION,
                        attempt=number,
                        decision="deny" if denied else "allow",
                        rule="p:1",
                    )
                )
            host.passes(DAY)
    value = json.loads(run("summary", "--state", str(place), *ALL, "--json").stdout)
    assert value["drift"] == ["denials rise: 25 in the last week, 0 in the one before"]


def test_a_summary_of_one_agent_or_of_nothing(state: Path) -> None:
    one = json.loads(
        run("summary", "--state", str(state), *ALL, "--json", "--agent", "other").stdout
    )
    assert (one["evaluations"], one["denied"]) == (14, 14)
    result = run("summary", "--state", str(state), "--since", "2020-01-01", "--until", "2020-02-01")
    assert result.exit_code == 0
    assert "no records in this period" in result.stdout


def test_what_an_agent_chose_is_neither_markup_nor_a_tag(state: Path) -> None:
    shown = run("summary", "--state", str(state), *ALL).stdout
    assert "[bold]x" in shown
    assert "87.5%" in shown
    page = run("summary", "--state", str(state), *ALL, "--html").stdout
    assert "<script>" not in page
    assert "&lt;script&gt;0" in page
    assert "@media print" in page


def test_the_columns_of_a_summary_add_up_to_what_was_decided(tmp_path: Path) -> None:
    place = tmp_path / "observed"
    with Journal.open(place / "journal") as journal:
        for number, enforced in enumerate(("observe", "observe", "openat")):
            journal.append(
                Entry(
                    type=RecordType.DECISION,
                    agent="demo",
                    attempt=number,
                    decision="deny",
                    enforced_by=enforced,
                    rule="p:1",
                )
            )
    page = run("summary", "--state", str(place), *ALL, "--html").stdout
    assert "<th>observed<tr><td>demo<td class=n>0<td class=n>1<td class=n>2</table>" in page
    shown = run("summary", "--state", str(place), *ALL).stdout
    rows = [line.split() for line in shown.splitlines()]
    assert ["demo", "0", "1", "2"] in [row[:4] for row in rows]


def test_counts_that_may_be_too_low_are_said_to_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("safeclaw.daemon.evidence.summary.TARGETS_MAX", 200)
    place = tmp_path / "many"
    with Journal.open(place / "journal") as journal:
        for number in range(250):
            journal.append(decision(number, effect="deny"))
    for form in ((), ("--html",)):
        shown = run("summary", "--state", str(place), *ALL, *form).stdout
        assert "Top denied targets, counts may be too low" in shown


def test_a_rule_of_the_policy_that_is_extended_counts_as_used(tmp_path: Path) -> None:
    policy = PolicyRef(name="child", sha256="0" * 64, version="1")
    place = tmp_path / "child"
    with Journal.open(place / "journal") as journal:
        journal.append(Entry(type=RecordType.POLICY_LOAD, policy=policy, detail={"rules": 2}))
        for rule in ("child:1", "soc2-baseline:3", "runtime:4", "default-deny"):
            journal.append(
                Entry(type=RecordType.DECISION, decision="deny", rule=rule, policy=policy)
            )
    value = json.loads(run("summary", "--state", str(place), *ALL, "--json").stdout)
    assert value["drift"] == []
    (force,) = value["policies"]
    assert (force["rules"], force["rules_used"], len(force["used"])) == (2, 2, 4)
