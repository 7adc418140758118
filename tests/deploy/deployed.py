"""What an operator does on a machine that has the package: policies, agents, records."""

from __future__ import annotations

import json
from typing import Any, cast

from tests.deploy.booted import Booted

#: The workspace, and programs; nothing else.
DEMO = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
#: Makes one file after the other, for as long as it lives; what is refused it tries again.
WORKER = """\
import itertools, os, time
for number in itertools.count(len(os.listdir())):
    try:
        open(f"made-{number}", "x").close()
    except PermissionError:
        pass
    time.sleep(0.02)
"""


class Deployed:
    """A machine, and what is done there as root."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine

    def policy(self, name: str, text: str) -> None:
        """Put a policy in its place, as an editor does."""
        self.machine.write(f"/etc/safeclaw/policies/{name}.yaml", text)

    def add(self, name: str, *more: str, policy: str = "demo") -> str:
        """Register an agent; return its key."""
        words = ("--policy", policy, "--owner", "olga", "--environment", "test")
        return self.machine.run("safeclaw", "agent", "add", name, *words, *more).stdout.strip()

    def agent(self, name: str, command: str, script: str = "", policy: str = "demo") -> None:
        """Register an agent and set its unit up; ``script`` becomes its worker.py."""
        self.machine.systemctl("start", f"safeclaw-agent-user@{name}")
        key = self.add(name, "--user", f"_agent-{name}", policy=policy)
        self.machine.write(f"/etc/safeclaw/keys/{name}", key + "\n", 0o600)
        self.machine.write(f"/etc/safeclaw/agents/{name}.env", f"COMMAND={command}\n")
        if script:
            owner = f"_agent-{name}:_agent-{name}"
            home = f"/var/lib/safeclaw-agents/{name}"
            self.machine.run("install", "-d", "-o", f"_agent-{name}", "-m", "0700", home)
            self.machine.write(f"{home}/worker.py", script, owner=owner)

    def worker(self, name: str) -> None:
        """Set up and start an agent that works all the time; return when it does."""
        self.agent(name, "/usr/bin/python3 worker.py", WORKER)
        self.start(name)

    def start(self, name: str) -> None:
        """Start an agent's unit; return when it works."""
        self.machine.systemctl("start", f"safeclaw-agent@{name}")
        self.works(name)

    def works(self, name: str) -> None:
        """Wait until an agent is allowed something that it has not been allowed before."""
        self.machine.next(f"SAFECLAW_AGENT={name}", "SAFECLAW_DECISION=allow")

    def goes_on(self, name: str) -> None:
        """Wait until a worker has made a file that is not there now."""
        before = self.made(name)
        with self.machine.watch(
            f"SAFECLAW_AGENT={name}", "SAFECLAW_ACTION=file.write.create"
        ) as seen:
            while str(seen()["SAFECLAW_TARGET"]).rpartition("/")[2] in before:
                pass

    def made(self, name: str) -> dict[str, float]:
        """Return the files that an agent has made, and when."""
        home = f"/var/lib/safeclaw-agents/{name}"
        found = self.machine.sh(f"find {home} -name 'made-*' -printf '%f %T@\\n'")
        return {line.split()[0]: float(line.split()[1]) for line in found.splitlines()}

    def pid(self, name: str) -> str:
        """Return the main process of an agent's unit."""
        return self.machine.show(f"safeclaw-agent@{name}", "MainPID")["MainPID"]

    def records(self, *filters: str) -> list[dict[str, Any]]:
        """Return the records of the chain."""
        command = ("safeclaw", "audit", "show", "--json", "--state", "/var/lib/safeclaw")
        said = self.machine.run(*command, *filters).stdout
        return [cast("dict[str, Any]", json.loads(line)) for line in said.splitlines()]

    def forwarded(self) -> set[int]:
        """Return the numbers of the records that journald has."""
        entries = self.machine.journal("_SYSTEMD_UNIT=safeclawd.service")
        return {int(entry["SAFECLAW_SEQ"]) for entry in entries if "SAFECLAW_SEQ" in entry}

    def created(self, name: str) -> set[str]:
        """Return the names of the files whose making is recorded as allowed."""
        return {
            record["target"]["path"].rpartition("/")[2]
            for record in self.records("--agent", name, "--decision", "allow")
            if record["action"] == "file.write.create"
        }

    def accounted(self, name: str) -> None:
        """Hold what a worker has made against the chain: every file, every number, no gap.

        What is recorded comes in order: a worker that works has to go on first.
        """
        made = set(self.made(name))
        if self.pid(name) != "0":
            self.goes_on(name)
        assert made
        assert made <= self.created(name)
        numbers: dict[str, list[int]] = {}
        for record in self.records("--agent", name):
            assert record["type"] != "gap", record
            if "attempt" in record:
                numbers.setdefault(record["session"], []).append(record["attempt"])
        for session, found in numbers.items():
            assert found == list(range(1, len(found) + 1)), session

    def verify(self, *more: str) -> str:
        """Verify the chain; return what is said."""
        return self.machine.run(
            "safeclaw", "audit", "verify", "--state", "/var/lib/safeclaw", *more
        ).stdout
