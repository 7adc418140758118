"""People on a machine: who decides for them, what they are told, what happens on disk."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
from collections.abc import Generator

import pytest

from tests.deploy.booted import Booted
from tests.deploy.deployed import Deployed

STRANGER, MEMBER = "ann", "mia"
#: Both files are the user's own to make; the second lies outside the workspace.
WORK = ("sh", "-c", "touch made; touch ~/outside; true")
OUTSIDE = "denied file.write.create /home/{}/outside [default:8]"
#: What a hardened unit or a container takes away, by seccomp.
HARDENED = ("systemd-run", "--quiet", "--pipe", "--wait", "--property=RestrictNamespaces=yes")


@pytest.fixture(scope="module", name="people")
def _people(deployed: Deployed) -> Deployed:
    """The machine, with somebody who is in no group of safeclaw's, and a member."""
    machine = deployed.machine
    for name, groups in ((STRANGER, ()), (MEMBER, ("safeclaw",))):
        machine.user(name, *groups)
        machine.run("mkdir", f"/home/{name}/work", user=name)
        # Without safeclaw both files can be made.
        machine.run("env", "-C", f"/home/{name}/work", *WORK, user=name)
        assert _files(machine, name) == {"made", "outside"}
    return deployed


def _files(machine: Booted, name: str) -> set[str]:
    """Return what somebody has made, and take it away."""
    home = f"/home/{name}"
    made = machine.sh(f"ls {home} {home}/work").split()
    machine.run("rm", "--force", f"{home}/outside", f"{home}/work/made")
    return {"made", "outside"} & set(made)


def _run(
    machine: Booted, name: str, *options: str, within: tuple[str, ...] = ()
) -> subprocess.CompletedProcess[str]:
    """Have somebody run the work in their workspace."""
    words = ("safeclaw", "run", *options, "--", *WORK)
    where = f"/home/{name}/work"
    if within:
        unit = (f"--property=User={name}", f"--property=WorkingDirectory={where}")
        return machine.run(*within, *unit, *words, check=False)
    return machine.run("env", "-C", where, *words, user=name, check=False)


def _broker(said: subprocess.CompletedProcess[str]) -> tuple[str, str]:
    """Return which broker a run says it used: its process, and whose it is."""
    found = re.search(r"^safeclaw: broker: pid (\d+) \((.*)\)$", said.stderr, re.MULTILINE)
    assert found is not None, said.stderr
    return found[1], found[2]


def _held(machine: Booted, name: str, said: subprocess.CompletedProcess[str]) -> None:
    """Hold a run against what the default policy allows."""
    assert said.returncode == 0, said.stderr
    assert OUTSIDE.format(name) in said.stderr
    assert _files(machine, name) == {"made"}


@contextlib.contextmanager
def _no_daemon(machine: Booted) -> Generator[None]:
    machine.systemctl("stop", "safeclawd.socket", "safeclawd.service")
    try:
        yield
    finally:
        machine.systemctl("start", "safeclawd.socket", "safeclawd.service")


def _own(name: str) -> str:
    return f"your own, state /home/{name}/.local/state/safeclaw"


def test_without_the_daemon_one_has_a_broker_of_ones_own(people: Deployed) -> None:
    machine = people.machine
    with _no_daemon(machine):
        said = _run(machine, STRANGER, "-v")
        assert _broker(said)[1] == _own(STRANGER)
        _held(machine, STRANGER, said)
        machine.run("safeclaw", "audit", "verify", user=STRANGER)
        shown = machine.run("safeclaw", "audit", "show", "--decision=deny", user=STRANGER).stdout
    assert "file.write.create /home/ann/outside [default:8]" in shown


def test_who_is_no_member_is_told_so_and_nothing_runs(people: Deployed) -> None:
    machine = people.machine
    said = _run(machine, STRANGER)
    assert said.returncode == 125
    assert said.stderr.splitlines() == [
        "safeclaw: ann may not start sessions with the system's broker",
        "hint: as root: usermod -aG safeclaw ann; or safeclaw run --broker embedded, "
        "with a journal of one's own",
    ]
    assert _files(machine, STRANGER) == set()
    (refusal,) = people.records("--action", "session.start")
    uid = int(machine.run("id", "--user", STRANGER).stdout)
    assert refusal["subject"]["uid"] == uid
    assert (refusal["decision"], refusal["rule"]) == ("deny", "access-control")
    asked = machine.run("safeclaw", "status", user=STRANGER, check=False)
    assert asked.returncode == 125
    assert "--broker embedded" in asked.stderr

    # The second way that the hint names.
    said = _run(machine, STRANGER, "-v", "--broker", "embedded")
    assert _broker(said)[1] == _own(STRANGER)
    _held(machine, STRANGER, said)
    assert all(one["subject"]["uid"] != uid for one in people.records("--type", "session_start"))


def test_a_members_sessions_are_in_the_systems_chain(people: Deployed) -> None:
    machine = people.machine
    said = _run(machine, MEMBER, "-v")
    pid = machine.show("safeclawd", "MainPID")["MainPID"]
    assert _broker(said) == (pid, "at /run/safeclaw/broker.sock")
    _held(machine, MEMBER, said)
    (denial,) = people.records("--decision", "deny", "--action", "file.write.create")
    assert denial["target"]["path"] == f"/home/{MEMBER}/outside"
    assert denial["rule"] == "default:8"
    assert denial["subject"]["uid"] == int(machine.run("id", "--user", MEMBER).stdout)
    # Those of their own sessions are shown to them, and the broker reads them out.
    shown = machine.run("safeclaw", "audit", "show", "--json", user=MEMBER)
    assert shown.stderr == "safeclaw: these are the records of your own sessions\n"
    records = [json.loads(line) for line in shown.stdout.splitlines()]
    assert denial in records
    assert {one["subject"]["uid"] for one in records} == {denial["subject"]["uid"]}
    # To read the chain takes another group, and one is told which.
    shown = machine.run("safeclaw", "audit", "tail", user=MEMBER, check=False)
    assert shown.returncode == 125
    assert shown.stderr.splitlines() == [
        "safeclaw: /var/lib/safeclaw/journal: Permission denied",
        "hint: the system's journal is for root and members of the group safeclaw-audit",
    ]


@pytest.mark.parametrize("broker", ["system", "embedded"])
def test_without_user_namespaces_landlock_isolation_is_named_and_runs(
    people: Deployed, broker: str
) -> None:
    machine = people.machine
    said = _run(machine, MEMBER, "--broker", broker, within=HARDENED)
    assert said.returncode == 125
    error, hint = said.stderr.splitlines()
    assert error.startswith("safeclaw: the walls could not be put up: ")
    assert "Operation not permitted" in error
    assert hint.startswith("hint: ")
    assert "--isolation landlock" in hint
    assert _files(machine, MEMBER) == set()
    looked = machine.run(*HARDENED, f"--property=User={MEMBER}", "safeclaw", "doctor", check=False)
    assert "missing  namespaces  not permitted" in looked.stdout
    assert "in a systemd unit, RestrictNamespaces= forbids it" in looked.stdout
    assert "safeclaw run --isolation landlock works here" in looked.stdout

    options = ("-v", "--broker", broker, "--isolation", "landlock")
    said = _run(machine, MEMBER, *options, within=HARDENED)
    whose = "at /run/safeclaw/broker.sock" if broker == "system" else _own(MEMBER)
    assert _broker(said)[1] == whose
    assert "\nsafeclaw: isolation: landlock\n" in said.stderr
    assert "\nsafeclaw:   mount namespace: " in said.stderr
    _held(machine, MEMBER, said)
