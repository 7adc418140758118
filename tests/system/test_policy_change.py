"""Policies that change under a real safeclawd: restarts, two people, and the way back."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.system.admins import ANN, BOB, DEMO, WIDE, as_admin, in_force, making, ruled
from tests.system.conftest import Person
from tests.system.system_broker import Making, Pace, SystemBroker

__all__ = ["making"]

NARROW = DEMO.replace(
    "rules:\n", 'rules:\n  - {action: file.write, path: "now/**", effect: deny}\n'
)
#: Tries until it may, and says each step.
LATER = """\
import os
said = os.open("fifo", os.O_WRONLY)
while True:
    try:
        os.mkdir("later/one")
        break
    except PermissionError:
        os.write(said, b"-")
"""


def events(broker: SystemBroker) -> list[str]:
    """Return what has happened to policies, but for what sessions say."""
    return [
        one["detail"]["event"]
        for one in broker.records("--type", "policy_load")
        if "session" not in one
    ]


@contextmanager
def trying(broker: SystemBroker, person: Person) -> Generator[tuple[Any, subprocess.Popen[str]]]:
    """Have the agent demo try to make later/one until it may."""
    key = str(broker.ask("agent", "rotate-key", "demo")["api_key"])
    (person.workspace / "later").mkdir()
    person.write("later.py", LATER)
    pace = Pace(person.workspace / "fifo", person.name)
    words = ("--agent", "demo", "--", "/usr/bin/python3", "later.py")
    try:
        with broker.run(person, *words, key=key) as running:
            try:
                pace.steps(3)
                yield pace, running
            finally:
                running.kill()
    finally:
        pace.close()


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_a_wider_policy_waits_for_two_people_who_are_not_the_same(
    making: Making, person: Person, ordinary_user: str
) -> None:
    broker = ruled(making, ordinary_user)
    before = in_force(broker)
    made = person.workspace / "later/one"
    with trying(broker, person) as (pace, running):
        broker.policy("demo", WIDE)
        told = broker.reload()
        waiting = told["pending"]["demo"]
        assert told["in_force"]["demo"] == before
        pace.steps(50)
        # what is not wider comes at once, while the other waits no more; then that waits again
        broker.policy("demo", NARROW)
        assert broker.reload()["pending"] == {}
        assert in_force(broker) not in (before, waiting)
        broker.policy("demo", WIDE)
        assert broker.reload()["pending"]["demo"] == waiting
        # a restart, however it comes, is no way round
        broker.stop(signal.SIGKILL)
        broker.start()
        assert broker.reload()["pending"]["demo"] == waiting
        pace.steps(2000)  # more than a pipe could have held from before
        yes = ("policy", "approve", "demo", waiting)
        assert as_admin(broker, ANN, *yes, "--why", "needed") == 0
        assert as_admin(broker, ANN, *yes) == 125, "one person is not two"
        broker.stop()
        broker.start()
        assert as_admin(broker, ANN, *yes) == 125, "nor is one person after a restart"
        assert not made.exists()
        assert running.poll() is None
        assert as_admin(broker, BOB, *yes) == 0
        assert running.wait(60) == 0, running.communicate()
        running.communicate()
    assert made.is_dir()
    (last, *_) = reversed(
        [one for one in broker.records("--type", "policy_load") if "session" not in one]
    )
    assert last["detail"]["approved_by"] == [ANN, BOB]
    assert last["policy"]["sha256"] == waiting
    assert events(broker) == [
        *("loaded", "rule", "pending", "withdrawn", "loaded", "pending", "approved", "loaded")
    ]
    assert broker.verify().returncode == 0, broker.verify().stdout


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_without_the_rule_the_same_change_is_in_force_at_once(
    making: Making, person: Person, ordinary_user: str
) -> None:
    broker = ruled(making, ordinary_user, on=False)
    with trying(broker, person) as (_, running):
        broker.policy("demo", WIDE)
        assert running.wait(60) == 0
        running.communicate()
    assert (person.workspace / "later/one").is_dir()


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_what_waits_is_shown_with_its_meaning_and_can_be_refused(
    making: Making, person: Person, ordinary_user: str
) -> None:
    del person
    broker = ruled(making, ordinary_user)
    assert "nothing waits" in broker.safeclaw("policy", "pending").stdout
    before = in_force(broker)
    broker.policy("demo", WIDE)
    waiting = broker.reload()["pending"]["demo"]
    shown = broker.safeclaw("policy", "pending")
    assert f"demo {waiting}" in shown.stdout
    assert '+ demo:2 (line 4): {action: [file.read, file.write], path: "**"' in shown.stdout
    (one,) = broker.ask("policy", "pending")
    assert one["difference"]["relation"] in ("wider", "different")
    # an administrator who cannot read the state sees the same
    assert as_admin(broker, ANN, "policy", "pending") == 0
    assert broker.ask("status")["alerts"]["raised"] == 1
    status = broker.safeclaw("status").stdout
    assert f"waits for two people: demo {waiting}" in status
    assert as_admin(broker, ANN, "policy", "refuse", "demo", waiting, "--why", "too much") == 0
    assert as_admin(broker, BOB, "policy", "approve", "demo", waiting) == 125
    broker.policy("demo", DEMO)
    assert broker.reload()["pending"] == {}
    assert in_force(broker) == before
    assert events(broker)[2:] == ["pending", "refused", "withdrawn"]


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_a_file_elsewhere_is_watched_as_soon_as_an_agent_is_held_to_it(
    making: Making, person: Person
) -> None:
    del person
    broker = making()
    place = broker.base / "elsewhere"
    place.mkdir(mode=0o755)
    file = place / "policy.yaml"
    file.write_text(DEMO)
    broker.add("demo", policy=str(file))
    before = broker.ask("status")["policies"][str(file)]
    file.write_text(WIDE)
    while broker.ask("status")["policies"][str(file)] == before:
        pass  # nothing asks the broker to look


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_what_changed_while_the_broker_was_down_is_recorded_by_the_next(
    making: Making, person: Person
) -> None:
    del person
    broker = making()
    broker.add("demo")
    before = in_force(broker)
    broker.stop(signal.SIGKILL)
    broker.policy("demo", WIDE)
    broker.start()
    after = in_force(broker)
    assert before != after
    _, change = [one for one in broker.records("--type", "policy_load") if "session" not in one]
    assert (change["detail"]["previous"], change["policy"]["sha256"]) == (before, after)
    broker.stop()
    broker.start()
    assert len(events(broker)) == 2


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_a_rollback_puts_file_and_broker_back_and_says_who_and_why(
    making: Making, person: Person
) -> None:
    broker = making()
    broker.add("demo")
    file = broker.config / "policies" / "demo.yaml"
    file.chmod(0o640)
    before = in_force(broker)
    nothing = broker.safeclaw("policy", "rollback", "demo", "--why", "x")
    assert (nothing.returncode, nothing.stdout) == (125, "")
    assert "nothing was in force before" in nothing.stderr
    broker.policy("demo", WIDE)
    wide = in_force(broker)
    file.chmod(0o640)
    done = broker.safeclaw("policy", "rollback", "demo", "--why", "it let too much through")
    assert done.returncode == 0, done.stderr
    assert file.read_text() == DEMO
    assert file.stat().st_mode & 0o777 == 0o640
    assert in_force(broker) == before
    assert not [one for one in file.parent.iterdir() if one.name.startswith(".")]
    # by hash, there and again
    for sha256 in (wide, before):
        assert broker.ask("policy", "rollback", "demo", "--to", sha256[:12], "--why", "x")
        assert in_force(broker) == sha256
    for wrong in ("0" * 64, before):
        words = ("policy", "rollback", "demo", "--to", wrong, "--why", "x")
        assert broker.safeclaw(*words).returncode == 125
    assert in_force(broker) == before
    # whoever may not write the file changes nothing, and an ordinary user may not even ask
    asked = ("policy", "rollback", "demo", "--why", "x", "--broker", str(broker.socket))
    assert "not permitted" in person.safeclaw(*asked).stderr
    shown = subprocess.run(
        [sys.executable, "-m", "safeclaw.daemon.cli", "policy", "history", "demo",
         "--json", "--state", str(broker.state)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    held = [json.loads(line) for line in shown.stdout.splitlines()]
    assert [one["sha256"] for one in held] == [before, wide, before, wide, before]
    assert [one["what"] for one in held] == ["first", "file", "rollback", "rollback", "rollback"]
    assert (held[2]["by"], held[2]["why"]) == ([0], "it let too much through")
    assert [bool(one["until"]) for one in held] == [True] * 4 + [False]
    assert broker.verify().returncode == 0, broker.verify().stdout


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_a_rollback_writes_one_file_or_none(making: Making, person: Person) -> None:
    del person
    broker = making()
    rest = DEMO.partition("rules:")[2]
    child = f'version: "1.0"\nextends: ./base.yaml\nrules:{rest}'
    broker.policy("base", NARROW)
    broker.policy("demo", child)
    broker.add("demo")
    before = in_force(broker)
    broker.policy("base", WIDE)
    assert in_force(broker) != before
    done = broker.safeclaw("policy", "rollback", "demo", "--why", "the base was changed")
    assert done.returncode == 0, done.stderr
    assert in_force(broker) == before
    assert (broker.config / "policies/base.yaml").read_text() == NARROW
    # two files: neither, and it says which, and how to get them
    broker.policy("base", WIDE)
    broker.policy("demo", child + "  - {action: network.send, effect: deny}\n")
    broker.reload()
    both = broker.safeclaw("policy", "rollback", "demo", "--to", before, "--why", "x")
    assert both.returncode == 125
    assert "more than one file" in both.stderr
    assert (broker.config / "policies/base.yaml").read_text() == WIDE
    texts = {word.strip("()") for word in both.stderr.split() if word.startswith("(")}
    assert len(texts) == 2
    # and what others stand in is left to a person
    broker.policy("demo", child)
    broker.policy("another", child)
    broker.add("another", policy="another")
    broker.reload()
    shared = broker.safeclaw("policy", "rollback", "demo", "--to", before, "--why", "x")
    assert "is part of another, too" in shared.stderr


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_a_rollback_to_what_is_wider_waits_for_two_people(
    making: Making, person: Person, ordinary_user: str
) -> None:
    del person
    broker = ruled(making, ordinary_user)
    before = in_force(broker)
    broker.policy("demo", NARROW)
    narrow = in_force(broker)
    done = broker.safeclaw("policy", "rollback", "demo", "--why", "too narrow")
    assert done.returncode == 1, done.stderr
    told = broker.reload()
    assert (told["in_force"]["demo"], told["pending"]["demo"]) == (narrow, before)
    for uid in (ANN, BOB):
        assert as_admin(broker, uid, "policy", "approve", "demo", before) == 0
    assert in_force(broker) == before
    assert os.path.exists(broker.config / "policies/demo.yaml")


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_an_agent_with_a_policy_that_was_never_in_force_waits_for_two_people(
    making: Making, person: Person, ordinary_user: str
) -> None:
    del person
    broker = ruled(making, ordinary_user)
    broker.policy("new", WIDE)
    words = ("agent", "add", "new", "--policy", "new", "--owner", "o", "--environment", "e")
    refused = broker.safeclaw(*words)
    assert refused.returncode == 125
    waiting = broker.reload()["pending"]["new"]
    assert f"safeclaw policy approve new {waiting}" in refused.stderr
    assert broker.safeclaw("agent", "set-policy", "demo", "new").returncode == 125
    for uid in (ANN, BOB):
        assert as_admin(broker, uid, "policy", "approve", "new", waiting) == 0
    assert broker.safeclaw(*words).returncode == 0
