"""docs/operations.md, followed on a booted Debian: every command in it, in its order."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

from tests.deploy.booted import Booted, base_tree
from tests.deploy.conftest import Boot

DOCUMENT = Path(__file__).resolve().parents[2] / "docs/operations.md"
#: What stands in the document for names that are made anew each time.
_APPROVAL, _KEY = "3f9a1c", "5c0ffee5"
_UNIT = "safeclaw-agent@demo"
_HOME = "/var/lib/safeclaw-agents/demo"


class Reader:
    """Somebody who does what the document says, section by section, as root."""

    def __init__(self, machine: Booted) -> None:
        self.machine = machine
        parts = re.split(r"^## (.*)\n", DOCUMENT.read_text(), flags=re.M)
        self._sections = dict(zip(parts[1::2], parts[2::2], strict=True))
        self._left = [
            heading for heading, text in self._sections.items() if re.search("^```sh", text, re.M)
        ]

    def blocks(self, heading: str, language: str = "sh") -> list[str]:
        """Return the blocks of a section, which is the next one."""
        if language == "sh":
            assert self._left.pop(0) == heading
        found = re.findall(rf"^```{language}\n(.*?)^```$", self._sections[heading], re.S | re.M)
        return [str(block) for block in found]

    def commands(self, heading: str) -> list[str]:
        """Return a section's commands, one by one."""
        text = "".join(self.blocks(heading)).replace("\\\n", "")
        return text.splitlines()

    def do(self, script: str, status: int = 0) -> str:
        """Type it; return all that it prints."""
        done = self.machine.run("sh", "-euc", f"cd /root; exec 2>&1\n{script}", check=False)
        assert done.returncode == status, f"{script}\n{done.returncode}: {done.stdout}"
        return done.stdout

    def follow(self, heading: str) -> str:
        """Type all of a section; return what it prints."""
        return "".join(self.do(block) for block in self.blocks(heading))

    def shown(self, heading: str, said: str) -> None:
        """Check that what the document shows is what was said; … stands for anything."""
        for line in "".join(self.blocks(heading, "text")).splitlines():
            pattern = r"\s+".join(re.escape(word) for word in line.split()).replace("…", ".*")
            assert re.search(pattern, said), f"{line!r} not in\n{said}"

    def finished(self) -> None:
        """Check that no section was left out."""
        assert self._left == []


def starts(machine: Booted) -> subprocess.Popen[str]:
    """Start the agent's unit; the process ends when the unit has."""
    return machine.popen("systemctl", "start", "--wait", _UNIT)


def test_operations_can_be_followed(boot: Boot, package: Path, newer: Path) -> None:
    machine = boot(base_tree())
    for deb, name in ((package, "safeclaw_0.1.0_amd64.deb"), (newer, "safeclaw_0.1.1_amd64.deb")):
        shutil.copy(deb, machine.root / "root" / name)
    for person in ("olga", "ina"):
        machine.user(person)
    reader = Reader(machine)

    said = reader.follow("Install")
    assert "\nactive\n" in said
    # A machine is faster than an operator: systemd would take it for a loop.
    limit = "/run/systemd/system/safeclaw-agent@.service.d/limit.conf"
    machine.write(limit, "[Unit]\nStartLimitIntervalSec=0\n")
    machine.systemctl("daemon-reload")
    reader.follow("Who may do what")
    said = reader.follow("The first agent")
    reader.shown("The first agent", said)
    assert "uid=" in said
    assert machine.read(f"{_HOME}/made") == "hi\n"
    assert machine.run("safeclaw", "audit", "verify", user="ina").returncode == 0
    approvals(reader)
    keys(reader)
    said = reader.follow("Access review")
    digest = machine.run("sha256sum", "/root/review-2026-q3.json").stdout.split()[0]
    assert said.count(digest) > 1  # the file has it, and the record
    assert re.search("^safeclaw-admin:x:[0-9]+:olga$", said, re.M)
    stop_and_resume(reader)
    fault(reader)
    policy(reader)
    reader.follow("Monitoring")
    anchors(reader)
    backup(reader)
    life(reader)
    reader.finished()


def approvals(reader: Reader) -> None:
    machine = reader.machine
    hook, start, answers = reader.blocks("Approvals")
    reader.do(hook)
    wants, starting, look = start.splitlines()
    ident = ""
    for at, answer in enumerate(answers.splitlines()):
        with machine.watch("SYSLOG_IDENTIFIER=safeclaw-page") as paged:
            if at == 0:
                reader.do(wants)
                reader.do(starting)
            agent = starts(machine)
            ident = str(json.loads(paged()["MESSAGE"])["approval"])
        if at == 0:
            said = reader.do(look)
            reader.shown("Approvals", said.replace(ident, _APPROVAL))
            olga = machine.run("safeclaw", "approvals", user="olga").stdout
            assert ident in olga
        assert _APPROVAL in answer
        reader.do(answer.replace(_APPROVAL, ident))
        agent.communicate()
        made = machine.run("rmdir", f"{_HOME}/reports", check=False).returncode == 0
        assert made == (" approve " in answer), answer
    # the last yes was for this agent's later sessions
    starts(machine).communicate()
    assert machine.run("test", "-d", f"{_HOME}/reports").returncode == 0


def keys(reader: Reader) -> None:
    machine = reader.machine
    old = machine.read("/etc/safeclaw/keys/demo").split("_")[1]
    said = "".join(reader.do(block.replace(_KEY, old)) for block in reader.blocks("Keys"))
    assert re.search(rf"^demo: revoked {old}; ", said, re.M)
    new = machine.read("/etc/safeclaw/keys/demo").split("_")[1]
    assert new != old
    shown = reader.do("safeclaw agent show demo")
    assert re.search(rf"^{old} +revoked ", shown, re.M)
    assert re.search(rf"^{new} +valid ", shown, re.M)


def stop_and_resume(reader: Reader) -> None:
    machine = reader.machine
    machine.write("/etc/safeclaw/agents/demo.env", "COMMAND=/usr/bin/sleep infinity\n")
    commands = iter(reader.commands("Stop and resume"))
    for _ in range(2):  # one agent, and all
        at_work(machine)
        said = reader.do(next(commands))
        assert ": 1 sessions stopped; down until safeclaw resume " in said
        starts(machine).communicate()
        assert machine.show(_UNIT, "ExecMainStatus") == {"ExecMainStatus": "125"}
        reader.do(next(commands))
    at_work(machine)
    for command in commands:
        reader.do(command)
    assert machine.run("pgrep", "-u", "_agent-demo", check=False).stdout == ""


def at_work(machine: Booted) -> None:
    """Start the agent; return when its session has begun."""
    with machine.watch("SAFECLAW_TYPE=session_start") as begun:
        done = machine.systemctl("start", _UNIT, check=False)
        assert done.returncode == 0, machine.sh(f"journalctl --unit={_UNIT} --lines=40")
        begun()


def fault(reader: Reader) -> None:
    """A full disk: a small one, and something else on it."""
    machine = reader.machine
    machine.sh(
        "systemctl stop safeclawd\n"
        "cp --archive /var/lib/safeclaw /root/saved\n"
        "mount -t tmpfs -o size=8M,mode=0750 tmpfs /var/lib/safeclaw\n"
        "cp --archive /root/saved/. /var/lib/safeclaw/\n"
        "systemctl start safeclawd\n"
        "dd if=/dev/zero of=/var/lib/safeclaw/something bs=4k 2>/dev/null || true\n"
    )
    while machine.run("safeclaw", "status", check=False).returncode == 0:
        starts(machine).communicate()  # until the last block is full of its records
    first, second = reader.blocks("When the status says FAULT")
    status, room = first.splitlines()
    assert "\nFAULT, nothing is allowed: " in reader.do(status, 1)
    assert "100%" in reader.do(room)
    machine.run("rm", "/var/lib/safeclaw/something")
    reader.do(second)
    machine.sh(
        "systemctl stop safeclawd\n"
        "rm -r /root/saved && cp --archive /var/lib/safeclaw /root/saved\n"
        "umount /var/lib/safeclaw\n"
        "cp --archive /root/saved/. /var/lib/safeclaw/\n"
        "systemctl start safeclawd"
    )


def policy(reader: Reader) -> None:
    machine, said = reader.machine, ""
    for command in reader.commands("Changing a policy"):
        if not command.startswith("install "):
            said = reader.do(command)
            continue
        with machine.watch("SAFECLAW_TYPE=policy_load") as loaded:
            reader.do(command)
            loaded()
    assert "in force" in said
    assert "drafts" not in machine.read("/etc/safeclaw/policies/demo.yaml")


def anchors(reader: Reader) -> None:
    machine = reader.machine
    keep, there, here = reader.blocks("Anchors: copies that this host cannot change")
    reader.do(keep)
    reader.do(there)
    machine.wait_for("_SYSTEMD_UNIT=safeclaw-witness.service")  # it says where it listens
    reader.do(here)


def backup(reader: Reader) -> None:
    machine = reader.machine
    make, restore, anew = reader.blocks("Backup and restore")
    reader.do(make)
    reader.do(restore)
    machine.run("rm", "-r", "/var/lib/safeclaw.lost")
    # Something happens after the backup, an anchor has it, and the backup is restored.
    at_work(machine)
    machine.systemctl("stop", _UNIT)
    machine.systemctl("stop", "safeclawd.service")
    machine.run("cp", "/var/lib/safeclaw/journal/checkpoint", "/srv/anchors/checkpoint")
    said = ""
    for command in restore.splitlines():
        said += reader.do(command, 1 if " verify " in command else 0)
    assert "the chain ends after" in said
    reader.do(anew)
    assert machine.read("/var/lib/safeclaw/agents.json").count('"demo"')


def life(reader: Reader) -> None:
    machine = reader.machine
    at_work(machine)
    upgrade, restart = reader.blocks("Upgrade")
    pid = machine.show(_UNIT, "MainPID")
    reader.do(upgrade)
    assert machine.show(_UNIT, "MainPID") == pid
    reader.do(restart)
    assert machine.show(_UNIT, "MainPID") != pid
    again, purge, rest = reader.blocks("Remove, purge, uninstall")
    reader.do(again)
    machine.run("safeclaw", "audit", "verify")
    reader.do(purge)
    reader.do(rest)
    left = machine.sh("find / -xdev -name '*safeclaw*' -not -path '/root/*' -not -path '/proc/*'")
    assert [path for path in left.splitlines() if not path.startswith("/var/")] == []
