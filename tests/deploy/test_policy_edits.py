"""A policy that is edited while its agent works: by an editor, by a reload, in the middle of a
question.  docs/policy-changes.md says what a running session makes of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from tests.deploy.deployed import Deployed

POLICY = """\
version: "1.0"
rules:
  - {action: file.write, path: "asked/**", effect: ask, reason: "a person looks at it"}
  - {action: file.write, path: "barred/**", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
NARROWER = POLICY.replace('"barred/**"', '["barred/**", "free/**"]')
WIDER = POLICY.replace("barred/**", "nothing/**")
#: Each directory in turn, for as long as it lives; what is refused is tried again.
TRIES = """\
import itertools, time
for number in itertools.count():
    for name in DIRECTORIES:
        try:
            open(f"{name}/{number}", "x").close()
        except PermissionError:
            pass
    time.sleep(0.02)
"""


class Edited:
    """An agent at work, and the policy that it works under."""

    def __init__(self, deployed: Deployed, name: str, *directories: str) -> None:
        self.deployed, self.machine, self.name = deployed, deployed.machine, name
        self.path = f"/etc/safeclaw/policies/{name}.yaml"
        deployed.policy(name, POLICY)
        script = TRIES.replace("DIRECTORIES", repr(directories))
        deployed.agent(name, "/usr/bin/python3 worker.py", script, policy=name)
        # the directories are there before a rule asks about what is made below them
        home = f"/var/lib/safeclaw-agents/{name}"
        for each in ("free", "barred", "asked"):
            self.machine.run("install", "-d", "-o", f"_agent-{name}", f"{home}/{each}")
        with self.watch("SAFECLAW_DECISION=allow", "SAFECLAW_ACTION=file.write.create") as seen:
            self.machine.systemctl("start", f"safeclaw-agent@{name}")
            if "free" in directories:
                seen()

    def watch(self, *matches: str) -> AbstractContextManager[Callable[[], dict[str, Any]]]:
        """Watch journald for records of this agent."""
        return self.machine.watch(f"SAFECLAW_AGENT={self.name}", *matches)

    def edit(self, how: str, text: str) -> None:
        """Change the policy's file, in one of the ways that files are changed."""
        match how:
            case "renamed":
                self.machine.write(self.path, text)
            case "rewritten":
                self.machine.run("sh", "-euc", f"cat >{self.path}", stdin=text)
            case _:
                # A mount over it, and what is written to that by its other name, is nothing that
                # inotify tells of; SIGHUP alone can bring it.
                other = f"/root/{self.name}.yaml"
                script = 'cat >"$1"; mountpoint -q "$2" || mount --bind "$1" "$2"'
                self.machine.run("sh", "-euc", script, "sh", other, self.path, stdin=text)
                self.machine.systemctl("reload", "safeclawd")

    def adopted(self, how: str, text: str) -> dict[str, Any]:
        """Edit; wait until the session's next decisions are under the new text."""
        with self.watch("SAFECLAW_TYPE=policy_load") as seen:
            self.edit(how, text)
            return seen()

    def decided(self, directory: str) -> list[tuple[str, str]]:
        """Return the decisions on what the agent makes there, each with its policy's hash."""
        return [
            (one["decision"], one["policy"]["sha256"])
            for one in self.deployed.records("--agent", self.name, "--type", "decision")
            if one["action"] == "file.write.create" and f"/{directory}/" in one["target"]["path"]
        ]

    def in_force(self) -> str:
        """Return the hash that the status names."""
        said = self.machine.run("safeclaw", "status").stdout
        (found,) = re.findall(rf"^policy in force: {self.name} (\w+)", said, re.M)
        return str(found)


@pytest.mark.parametrize("how", ["renamed", "reloaded"])
def test_narrower_then_wider_binds_what_runs(deployed: Deployed, how: str) -> None:
    edited = Edited(deployed, f"moves-{how}", "free", "barred")
    machine, first = edited.machine, edited.in_force()
    pid = deployed.pid(edited.name)
    narrow = edited.adopted(how, NARROWER)["SAFECLAW_POLICY_SHA256"]
    assert edited.in_force() == narrow != first
    wide = edited.adopted(how, WIDER)["SAFECLAW_POLICY_SHA256"]
    with edited.watch("SAFECLAW_DECISION=allow", "SAFECLAW_ACTION=file.write.create") as seen:
        while "/barred/" not in seen()["SAFECLAW_TARGET"]:
            pass
    machine.systemctl("stop", f"safeclaw-agent@{edited.name}")
    assert deployed.pid(edited.name) != pid  # it was the one session, until now
    (start,) = deployed.records("--agent", edited.name, "--type", "session_start")
    assert start["detail"]["supervisor"] == int(pid)
    assert set(edited.decided("free")) <= {("allow", first), ("deny", narrow), ("allow", wide)}
    assert set(edited.decided("barred")) <= {("deny", first), ("deny", narrow), ("allow", wide)}
    assert ("allow", wide) in edited.decided("barred")
    deployed.verify("--journald")


@pytest.mark.parametrize("how", ["rewritten", "reloaded"])
def test_an_invalid_edit_changes_nothing_and_is_told(deployed: Deployed, how: str) -> None:
    edited = Edited(deployed, f"broken-{how}", "free")
    machine, first = edited.machine, edited.in_force()
    broken = POLICY.replace("effect: ask", "effect: perhaps")
    with machine.watch("SYSLOG_IDENTIFIER=safeclaw", "SAFECLAW_TYPE=policy_load") as seen:
        edited.edit(how, broken)
        told = seen()
    place = f"{edited.path}:3"
    # a warning, with the place and the reason; and the same in the chain
    assert (told["PRIORITY"], told["SAFECLAW_DECISION"]) == ("4", "deny")
    assert place in told["MESSAGE"]
    assert "perhaps" in told["MESSAGE"]
    assert told["SAFECLAW_POLICY_SHA256"] == first
    (refused,) = [
        one
        for one in deployed.records("--type", "policy_load", "--decision", "deny")
        if one["detail"]["ref"] == edited.name
    ]
    assert place in refused["reason"]
    # the status says which policy is not the file's, and why
    assert edited.in_force() == first
    said = machine.run("safeclaw", "status").stdout
    (line,) = [line for line in said.splitlines() if line.startswith(f"policy {edited.name}: ")]
    assert line.startswith(f"policy {edited.name}: what its file says is not in force: {place}")
    assert "perhaps" in line
    # the agent goes on under the old one
    deployed.works(edited.name)
    assert {sha for _, sha in edited.decided("free")} == {first}
    # put right, nothing is said any more
    if how == "reloaded":
        machine.run("umount", edited.path)
        machine.systemctl("reload", "safeclawd")
    narrow = edited.adopted("renamed", NARROWER)["SAFECLAW_POLICY_SHA256"]
    assert edited.in_force() == narrow
    assert place not in machine.run("safeclaw", "status").stdout
    machine.systemctl("stop", f"safeclaw-agent@{edited.name}")


CLOSED = POLICY.replace("effect: ask", "effect: deny")
ANEW = POLICY.replace("a person looks", "two people look")


@pytest.mark.parametrize("how", ["renamed", "reloaded"])
def test_what_waits_for_a_person_follows_the_edit(deployed: Deployed, how: str) -> None:
    edited = Edited(deployed, f"waits-{how}", "asked")
    machine = edited.machine
    with edited.watch("SAFECLAW_TYPE=approval") as events:
        first = _question(events)
        sha = edited.adopted(how, ANEW)["SAFECLAW_POLICY_SHA256"]
        second = _question(events)
        # what was shown under the old policy cannot be answered any more
        late = machine.run("safeclaw", "approvals", "approve", first, check=False)
        assert late.returncode == 125
        assert "no question is called" in late.stderr
        assert edited.decided("asked") == []
        machine.run("safeclaw", "approvals", "approve", second)
        third = _question(events)
        assert edited.decided("asked") == [("allow", sha)]
        closed = edited.adopted(how, CLOSED)["SAFECLAW_POLICY_SHA256"]
    with edited.watch("SAFECLAW_DECISION=deny") as refused:
        refused()
    late = machine.run("safeclaw", "approvals", "approve", third, check=False)
    assert late.returncode == 125
    decided = edited.decided("asked")
    assert decided[:2] == [("allow", sha), ("deny", closed)]
    assert set(decided[1:]) == {("deny", closed)}
    events_of = {
        ident: [
            one["detail"]["event"]
            for one in deployed.records("--agent", edited.name, "--type", "approval")
            if one["detail"]["approval"] == ident
        ]
        for ident in (first, second, third)
    }
    assert events_of == {
        first: ["asked", "withdrawn"],
        second: ["asked", "approved"],
        third: ["asked", "withdrawn"],
    }
    home = machine.root / "var/lib/safeclaw-agents" / edited.name
    assert [path.name for path in (home / "asked").iterdir()] == ["0"]
    machine.systemctl("stop", f"safeclaw-agent@{edited.name}")


def _question(events: Callable[[], dict[str, Any]]) -> str:
    """Return the name of the next question that is put before people."""
    while True:
        found = re.search(r" approval=([0-9a-f]{6}) event=asked ", events()["MESSAGE"])
        if found:
            return found[1]
