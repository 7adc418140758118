"""What an operator sees of one agent: its unit's log, journald and the chain tell one story."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from typing import Any

import pytest

from safeclaw.daemon.journal.journald import message_id
from safeclaw.daemon.journal.record import RecordType
from tests.deploy.booted import Booted
from tests.deploy.deployed import Deployed
from tests.deploy.test_package import UNITS

HOME = "/var/lib/safeclaw-agents/demo"
#: What the policy keeps is the agent's own: without safeclaw, nobody would.
POLICY = """\
version: "1.0"
rules:
  - {action: file.write, path: "kept/**", effect: deny, reason: "What is kept is not changed"}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
#: "once": to its end; else it stays, and does nothing more.
AGENT = """\
import pathlib, signal, sys
pathlib.Path("made").touch()
for attempt in (pathlib.Path("kept/new").touch, pathlib.Path("kept/old").unlink):
    try:
        attempt()
    except PermissionError as refusal:
        print(refusal.filename, "was refused", flush=True)
pathlib.Path("finished").touch()
if sys.argv[1:] != ["once"]:
    signal.pause()
"""
#: What stands in journald, and where the chain has it.
FIELDS: dict[str, Callable[[dict[str, Any]], object]] = {
    "SAFECLAW_CHAIN_ID": lambda record: record["chain"],
    "SAFECLAW_SEQ": lambda record: str(record["seq"]),
    "SAFECLAW_PREV_HASH": lambda record: record["prev"],
    "SAFECLAW_TYPE": lambda record: record["type"],
    "SAFECLAW_SESSION": lambda record: record.get("session"),
    "SAFECLAW_ACTION": lambda record: record.get("action"),
    "SAFECLAW_TARGET": lambda record: _target(record),
    "SAFECLAW_DECISION": lambda record: record.get("decision"),
    "SAFECLAW_RULE": lambda record: record.get("rule"),
    "SAFECLAW_REASON": lambda record: record.get("reason"),
    "SAFECLAW_POLICY": lambda record: record.get("policy", {}).get("name"),
    "SAFECLAW_POLICY_SHA256": lambda record: record.get("policy", {}).get("sha256"),
    "SAFECLAW_FINGERPRINT": lambda record: record.get("fingerprint"),
}


def _target(record: dict[str, Any]) -> str | None:
    match record.get("target"):
        case {"path": str(path)}:
            return path
        case {"program": str(program), "argv": [str(called), *arguments]}:
            named = called in (program, os.path.basename(program))
            return " ".join([program, *arguments, *([] if named else [f"(as {called})"])])
        case None:
            return None
        case other:
            raise AssertionError(other)


@pytest.fixture(scope="module", name="demo")
def _demo(deployed: Deployed) -> Deployed:
    """The machine, with an agent that has done its work and stays."""
    machine = deployed.machine
    deployed.policy("demo", POLICY)
    deployed.agent("demo", "/usr/bin/python3 worker.py", AGENT)
    for place in ("kept", "free", "free/kept"):
        machine.run("install", "-d", "-o", "_agent-demo", "-m", "0700", f"{HOME}/{place}")
    for kept in ("kept/old", "free/kept/old"):
        machine.write(f"{HOME}/{kept}", "keep me\n", owner="_agent-demo")
    machine.systemctl("start", "safeclaw-agent@demo")
    # Records come in their order: whoever has this one has those before it.
    machine.wait_for("SAFECLAW_AGENT=demo", f"SAFECLAW_TARGET={HOME}/finished")
    return deployed


def _denied(demo: Deployed) -> list[dict[str, Any]]:
    """Return what the agent was denied, but for names that are not there at all."""
    records = demo.records("--agent", "demo", "--decision", "deny")
    return [record for record in records if record["enforced_by"] != "absent"]


def test_it_runs_as_its_own_user_and_is_held_to_its_policy(demo: Deployed) -> None:
    machine = demo.machine
    uid = machine.run("id", "--user", "_agent-demo").stdout.strip()
    listed = [line.split() for line in machine.run("ps", "-eo", "uid=,unit=").stdout.splitlines()]
    theirs = [who for who, unit in listed if unit == "safeclaw-agent@demo.service"]
    assert len(theirs) >= 2  # the supervisor, and the agent
    assert set(theirs) == {uid}
    assert machine.sh(f"ls {HOME} {HOME}/kept").split() == [
        *(f"{HOME}:", "finished", "free", "kept", "made", "worker.py", f"{HOME}/kept:", "old")
    ]
    assert machine.read(f"{HOME}/kept/old") == "keep me\n"
    # The same program, by the same user, where nobody decides.
    machine.sh(f"cd {HOME}/free && runuser -u _agent-demo -- python3 ../worker.py once")
    assert machine.sh(f"ls {HOME}/free/kept").split() == ["new"]


def test_unit_log_journald_and_chain_tell_the_same_story(demo: Deployed) -> None:
    machine = demo.machine
    chain = demo.records("--agent", "demo")
    entries = machine.journal("--all", "--identifier=safeclaw", "SAFECLAW_AGENT=demo")
    for name, value in FIELDS.items():
        assert [one.get(name) for one in entries] == [value(one) for one in chain], name
    assert {one["_SYSTEMD_UNIT"] for one in entries} == {"safeclawd.service"}
    show = ("safeclaw", "audit", "show", "--state", "/var/lib/safeclaw", "--agent", "demo")
    lines = machine.run(*show).stdout.splitlines()
    # After number, time and session, what journald has as well.
    assert len(lines) == len(entries)
    assert all(line.endswith(one["MESSAGE"]) for line, one in zip(lines, entries, strict=True))

    log = [one["MESSAGE"] for one in machine.journal("--unit=safeclaw-agent@demo")]
    told = [re.match(r"safeclaw: denied (\S+) (\S+) \[(\S+)\] ", line) for line in log]
    seen = [one.groups() for one in told if one is not None]
    recorded = [(one["action"], _target(one), one["rule"]) for one in _denied(demo)]
    assert recorded == [
        ("file.write.create", f"{HOME}/kept/new", "demo:1"),
        ("file.write.delete", f"{HOME}/kept/old", "demo:1"),
    ]
    assert seen == recorded
    assert [line for line in log if line.endswith("was refused")] == [
        "kept/new was refused",
        "kept/old was refused",
    ]


def test_journalctl_explains_an_entry_and_its_command_gives_the_same_rule(demo: Deployed) -> None:
    machine = demo.machine
    denial = _denied(demo)[0]
    said = machine.run("journalctl", "--catalog", f"SAFECLAW_SEQ={denial['seq']}").stdout
    text = " ".join(line.removeprefix("░░").strip() for line in said.splitlines()[1:])
    target = f"{HOME}/kept/new"
    assert "Subject: An attempt of an agent was decided" in text
    assert f"The agent demo tried file.write.create on {target}" in text
    assert "the decision was deny, by demo:1 of the policy demo" in text
    command = re.search(r"safeclaw policy explain .* TARGET", text)
    assert command is not None
    (start,) = demo.records("--type", "session_start", "--session", denial["session"])
    words = {"FILE": "/etc/safeclaw/policies/demo.yaml", "TARGET": target}
    words["DIR"] = start["detail"]["workspace"]
    for word in words:
        assert word in command[0]
    asked = [words.get(word, word) for word in command[0].split()]
    answer = machine.run(*asked).stdout
    assert "verdict: deny\nrule: demo:1\n" in answer


def test_every_type_of_entry_has_an_explanation(machine: Booted) -> None:
    identifiers = [message_id(kind) for kind in RecordType]
    listed = machine.run("journalctl", "--list-catalog", *identifiers).stdout.splitlines()
    assert [line.split()[:2] for line in listed] == [[one, "safeclaw:"] for one in identifiers]


def _status(machine: Booted) -> tuple[dict[str, Any], list[int], str]:
    """Return what the broker says of itself, as numbers, and what its unit's status says."""
    status = json.loads(machine.run("safeclaw", "status", "--json").stdout)
    numbers = [status[name] for name in ("sessions", "decisions", "denials", "durable")]
    return status, numbers, machine.show("safeclawd", "StatusText")["StatusText"]


def test_the_status_of_the_unit_is_the_brokers_own(demo: Deployed) -> None:
    machine = demo.machine
    status, numbers, text = _status(machine)
    last = demo.records()[-1]["seq"]
    for _ in range(60):  # the text is at most a second behind; a heartbeat may come in between
        if [int(number) for number in re.findall(r"\d+", text)] == numbers and last == numbers[-1]:
            break
        status, numbers, text = _status(machine)
        last = demo.records()[-1]["seq"]
    sessions, decisions, denials, durable = numbers
    assert text == (
        f"{sessions} sessions, {decisions} decisions ({denials} denials); "
        f"records on disk up to {durable}"
    )
    assert f'Status: "{text}"' in machine.run("systemctl", "status", "safeclawd").stdout
    decided = demo.records("--agent", "demo", "--type", "decision")
    assert sessions == 1
    assert decisions == len(decided)
    assert denials == sum(record["decision"] == "deny" for record in decided)
    assert durable == last == status["head"]


def test_the_outer_walls_are_as_measured(machine: Booted) -> None:
    unit = (UNITS / "safeclaw-agent@.service").read_text()
    written = re.search(r"exposure of (\d\.\d)", unit)
    assert written is not None
    said = machine.run("systemd-analyze", "security", "safeclaw-agent@demo.service").stdout
    measured = re.search(r"Overall exposure level for \S+: (\d\.\d)", said)
    assert measured is not None
    assert measured[1] == written[1]


def test_a_verification_that_fails_is_seen(demo: Deployed) -> None:
    machine = demo.machine
    machine.systemctl("start", "safeclaw-verify")
    assert machine.show("safeclaw-verify", "Result") == {"Result": "success"}
    assert not machine.journal("PRIORITY=1")
    machine.systemctl("is-active", "safeclaw-verify.timer")
    machine.systemctl("stop", "safeclaw-agent@demo", "safeclawd.socket", "safeclawd.service")
    segment = "/var/lib/safeclaw/journal/segment-000001.jsonl"
    machine.run("sed", "--in-place=.whole", "s/demo:1/demo:2/", segment)
    failed = machine.systemctl("start", "safeclaw-verify", check=False)
    assert failed.returncode != 0
    assert machine.show("safeclaw-verify", "ExecMainStatus") == {"ExecMainStatus": "1"}
    alert = machine.wait_for("PRIORITY=1", "SYSLOG_IDENTIFIER=safeclaw")
    assert alert["MESSAGE"].startswith("safeclaw-verify.service failed: ")
    assert alert["_SYSTEMD_UNIT"] == "safeclaw-alert@safeclaw-verify.service"
    log = [entry["MESSAGE"] for entry in machine.journal("--unit=safeclaw-verify")]
    assert any("first fault: segment-000001.jsonl:" in line for line in log)
    assert "safeclaw-verify.service" in machine.run("systemctl", "--failed", "--plain").stdout
    # What made it fail away, it succeeds: the alarm is not stuck.
    machine.run("mv", f"{segment}.whole", segment)
    machine.systemctl("start", "safeclaw-verify")
