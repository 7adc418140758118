"""The package over time: upgraded under a running agent, removed, installed again, purged."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.deploy.booted import Booted
from tests.deploy.conftest import Boot
from tests.deploy.deployed import DEMO, Deployed

_STATE = "/var/lib/safeclaw"
_CHECKPOINT = f"{_STATE}/journal/checkpoint"


@pytest.fixture(name="deployed")
def _deployed(boot: Boot, installed: Path) -> Deployed:
    """A machine of the test's own, with an agent that works."""
    found = Deployed(boot(installed))
    found.policy("demo", DEMO)
    found.worker("demo")
    return found


def chain_of(machine: Booted) -> str:
    """Return the first lines of a checkpoint: what chain it is of."""
    return machine.read(_CHECKPOINT).splitlines()[0]


def keep_checkpoint(machine: Booted) -> str:
    """Keep the newest checkpoint elsewhere; return where."""
    machine.run("cp", _CHECKPOINT, "/root/checkpoint")
    return "/root/checkpoint"


def dpkg(machine: Booted, *words: str, **variables: str) -> str:
    """Run dpkg without anybody to ask; return what it said."""
    settings = {"DEBIAN_FRONTEND": "noninteractive", **variables}
    given = [f"{name}={value}" for name, value in settings.items()]
    done = machine.run("env", *given, "dpkg", *words)
    return done.stdout + done.stderr


def test_an_upgrade_keeps_the_chain_and_the_agent(deployed: Deployed, newer: Path) -> None:
    machine = deployed.machine
    shutil.copy(newer, machine.root / "root/newer.deb")
    before = machine.run("safeclaw", "--version").stdout.strip()
    chain, kept = chain_of(machine), keep_checkpoint(machine)
    broker = machine.show("safeclawd.service", "MainPID")
    agent = machine.show("safeclaw-agent@demo", "MainPID", "InvocationID")
    socket = machine.show("safeclawd.socket", "ActiveEnterTimestampMonotonic")

    dpkg(machine, "--install", "/root/newer.deb")

    assert machine.run("safeclaw", "--version").stdout.strip() == f"{before}+next"
    # a new broker, at the same socket, for the same agent
    assert machine.show("safeclawd.service", "ActiveState") == {"ActiveState": "active"}
    assert machine.show("safeclawd.service", "MainPID") != broker
    assert machine.show("safeclawd.socket", "ActiveEnterTimestampMonotonic") == socket
    deployed.works("demo")
    assert machine.show("safeclaw-agent@demo", "MainPID", "InvocationID") == agent
    machine.systemctl("stop", "safeclaw-agent@demo")

    records = deployed.records("--agent", "demo")
    (start,) = [one for one in records if one["type"] == "session_start"]
    numbers = [
        one["attempt"]
        for one in records
        if one.get("session") == start["session"] and "attempt" in one
    ]
    assert numbers == list(range(1, len(numbers) + 1)), "no attempt is missing, or there twice"
    assert set(deployed.made("demo")) <= deployed.created("demo")
    assert chain_of(machine) == chain
    deployed.verify("--checkpoint", kept, "--journald")


def test_removed_it_keeps_its_record_and_goes_on_with_it(deployed: Deployed, package: Path) -> None:
    machine = deployed.machine
    shutil.copy(package, machine.root / "root/safeclaw.deb")
    pid = int(deployed.pid("demo"))
    assert pid
    chain, kept = chain_of(machine), keep_checkpoint(machine)

    dpkg(machine, "--remove", "safeclaw")

    # nothing of it runs, and nothing is left that could be run
    assert machine.run("pgrep", "-u", "_agent-demo,_safeclaw", check=False).stdout == ""
    assert machine.run("test", "-e", "/run/safeclaw/broker.sock", check=False).returncode == 1
    for gone in ("/usr/bin/safeclaw", "/usr/lib/safeclaw", "/lib/systemd/system/safeclawd.service"):
        assert machine.run("test", "-e", gone, check=False).returncode == 1, gone
    made = deployed.made("demo")
    # the record is whole, its keys and the agents' are there, for nobody else to read
    assert chain_of(machine) == chain
    for secret in (f"{_STATE}/keys", "/etc/safeclaw/keys/demo", f"{_STATE}/agents.json"):
        mode = machine.run("stat", "--format=%a", secret).stdout.strip()
        assert int(mode, 8) & 0o077 == 0, f"{secret}: {mode}"

    dpkg(machine, "--install", "/root/safeclaw.deb")

    deployed.start("demo")
    assert chain_of(machine) == chain
    assert set(made) <= deployed.created("demo")
    deployed.verify("--checkpoint", kept, "--journald")


@pytest.mark.parametrize("answer", ["nobody", "no", "yes"])
def test_purging_asks_about_the_record(deployed: Deployed, answer: str) -> None:
    machine = deployed.machine
    chain = chain_of(machine)
    if answer == "nobody":
        dpkg(machine, "--purge", "safeclaw")
    else:
        # debconf's simplest front end, on a terminal that is a pipe
        done = machine.run(
            *("env", "DEBIAN_FRONTEND=teletype", "dpkg", "--purge", "safeclaw"),
            stdin=f"{answer}\n",
        )
        assert "Delete safeclaw's journal, keys and registered agents?" in done.stdout
    if answer == "yes":
        assert machine.sh("ls -d /var/lib/safeclaw* || true") == "/var/lib/safeclaw-agents\n"
    else:
        assert chain_of(machine) == chain
    # API keys are no record of anything
    assert machine.run("test", "-e", "/etc/safeclaw/keys", check=False).returncode == 1
    assert machine.run("pgrep", "-u", "_agent-demo,_safeclaw", check=False).stdout == ""
    # what an administrator has written is not the package's to delete
    assert machine.read("/etc/safeclaw/policies/demo.yaml") == DEMO
