"""Policies that change under sessions that run: the new one binds from its first number on."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.system.conftest import Person
from tests.system.demo import DEMO, STEPS, at_work, making, member, pace_of
from tests.system.system_broker import Making

__all__ = ["making", "member"]


NARROW = DEMO.replace('path: "**", effect: allow', 'path: ["fifo", "*.py"], effect: allow')


def test_a_narrower_policy_binds_the_running_session(making: Making, member: Person) -> None:
    broker = making()
    key = broker.add("demo")
    with at_work(broker, member, key, "stop") as (pace, running):
        pace.steps(3)
        broker.policy("demo", NARROW)
        assert running.wait(60) == 9
        out, _ = running.communicate()
    assert out == "refused\n"
    (start,) = broker.records("--type", "session_start")
    loads = [one for one in broker.records("--type", "policy_load") if one.get("session")]
    assert len(loads) == 2
    before, after = (one["policy"]["sha256"] for one in loads)
    assert loads[1]["detail"]["previous"] == before
    decided = broker.records("--action", "file.write.create", "--session", str(start["session"]))
    adopted = loads[1]["attempt"]
    for one in decided:
        assert one["policy"]["sha256"] == (before if one["attempt"] < adopted else after)
    assert broker.verify().returncode == 0


#: Leaves no room in what it shares with the supervisor for what that has to say.
_FILLS = """\
import os
os.set_blocking(2, False)
try:
    while True:
        os.write(2, b"-")
except BlockingIOError:
    os.set_blocking(2, True)
"""


def test_a_stderr_that_the_agent_has_filled_holds_no_policy_up(
    making: Making, member: Person
) -> None:
    broker = making()
    key = broker.add("demo")
    os.mkfifo(member.base / "stderr")
    member.own()
    reader = os.open(member.base / "stderr", os.O_RDONLY | os.O_NONBLOCK)
    with pace_of(member) as pace:
        member.write("steps.py", _FILLS + STEPS)
        words = ("--agent", "demo", "--", "/usr/bin/python3", "steps.py", "stop")
        with broker.run(member, *words, key=key, redirect=f"2>{member.base}/stderr") as running:
            pace.steps(3)
            broker.policy("demo", NARROW)
            try:
                assert running.wait(60) == 9
            finally:
                running.kill()
    os.close(reader)


def test_a_link_on_the_way_that_leads_elsewhere_is_noticed(making: Making, member: Person) -> None:
    broker = making()
    releases = broker.config / "releases"
    for name in ("one", "two"):
        (releases / name).mkdir(parents=True)
        (releases / name / "demo.yaml").write_text(DEMO)
    (releases / "current").symlink_to("one")
    place = broker.config / "policies/demo.yaml"
    place.unlink()
    place.symlink_to("../releases/current/demo.yaml")
    key = broker.add("demo")
    with at_work(broker, member, key, "stop") as (pace, running):
        pace.steps(3)
        (releases / "next").symlink_to("two")
        (releases / "next").rename(releases / "current")
        pace.steps(3)
        (releases / "two/demo.yaml").write_text(NARROW)
        assert running.wait(60) == 9
        running.communicate()
    assert broker.verify().returncode == 0


def test_an_invalid_policy_changes_nothing_and_is_recorded(making: Making, member: Person) -> None:
    broker = making()
    key = broker.add("demo")
    with at_work(broker, member, key, "stop") as (pace, running):
        pace.steps(3)
        broker.policy("demo", "rules: [")
        while not broker.records("--type", "policy_load", "--decision", "deny"):
            pace.steps(1)
        pace.steps(3)
        broker.ask("kill", "demo")
        running.communicate()
    (refused,) = broker.records("--type", "policy_load", "--decision", "deny")
    assert "demo.yaml" in refused["reason"]


LATER = """\
import os, sys
said = os.open("fifo", os.O_WRONLY)
refused = True
while refused:
    try:
        os.mkdir("later/one")
        refused = False
    except PermissionError:
        os.write(said, b"-")
"""


def test_a_wider_policy_reaches_the_running_session(making: Making, member: Person) -> None:
    broker = making()
    broker.policy(
        "demo", DEMO.replace("asked/**", "later/**").replace("effect: ask", "effect: deny")
    )
    key = broker.add("demo")
    (member.workspace / "later").mkdir()
    member.write("later.py", LATER)
    words = ("--agent", "demo", "--", "/usr/bin/python3", "later.py")
    with pace_of(member) as pace, broker.run(member, *words, key=key) as running:
        pace.steps(3)
        broker.policy("demo", DEMO.replace("asked/**", "elsewhere/**"))
        assert running.wait(60) == 0
        running.communicate()
    assert (member.workspace / "later/one").is_dir()
    decisions = [
        one["decision"]
        for one in broker.records("--action", "file.write.create")
        if str(one["target"]["path"]).endswith("later/one")
    ]
    assert decisions[:-1] == ["deny"] * (len(decisions) - 1)
    assert decisions[-1] == "allow"
    assert broker.verify().returncode == 0


@pytest.mark.parametrize("hand", ["file", "directory", "everybody"])
def test_a_policy_that_others_may_change_is_in_force_for_nobody(
    making: Making, member: Person, ordinary_user: str, hand: str
) -> None:
    broker = making()
    key = broker.add("demo")
    broker.stop()
    folder = broker.config / "policies"
    place = folder if hand == "directory" else folder / "demo.yaml"
    if hand == "everybody":
        place.chmod(0o666)
    else:
        shutil.chown(place, ordinary_user)
    broker.start()
    words = ("--agent", "demo", "--", "touch", "made")
    ran = member.finish(broker.run(member, *words, key=key))
    assert ran.returncode == 125
    assert f"{place} may be changed by" in ran.stderr
    assert not (member.workspace / "made").exists()
    shutil.chown(place, "root")
    place.chmod(0o755)
    ran = member.finish(broker.run(member, *words, key=key))
    assert ran.returncode == 0, ran.stderr
    assert (member.workspace / "made").exists()
