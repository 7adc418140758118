"""Questions to a person: the attempt waits, and a yes is no wider than what was shown."""

from __future__ import annotations

import re
import subprocess

import pytest

from tests.system.conftest import Person
from tests.system.demo import DEMO, making, member
from tests.system.system_broker import Making, SystemBroker, until_line

__all__ = ["making", "member"]


def asked(running: subprocess.Popen[str]) -> str:
    """Return the name of the next question that a run says it waits for."""
    line = until_line(running, "waiting for approval")
    match = re.search(r"waiting for approval ([0-9a-f]+):", line)
    assert match, line
    return match[1]


def ready(making: Making, person: Person, **settings: object) -> tuple[SystemBroker, str]:
    """Start a broker for the agent demo, which is to ask about what is in asked; its key."""
    broker = making(**settings)
    (person.workspace / "asked").mkdir()
    person.own()
    return broker, broker.add("demo")


@pytest.mark.parametrize("answer", ["once", "session", "no"])
def test_a_person_decides_and_the_attempt_waits(
    making: Making, member: Person, answer: str
) -> None:
    broker, key = ready(making, member)
    script = "mkdir asked/one && rmdir asked/one"
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        name = asked(running)
        assert not (member.workspace / "asked/one").exists()
        (shown,) = broker.ask("approvals", "list")
        assert shown["approval"] == name
        assert shown["target"] == {"path": str(member.workspace / "asked/one")}
        if answer == "no":
            broker.ask("approvals", "deny", name, "--why", "not today")
        else:
            more = ["--session"] if answer == "session" else []
            broker.ask("approvals", "approve", name, *more, "--why", "fine")
            second = asked(running)
            assert second != name, "another attempt is another question"
            broker.ask("approvals", "approve", second)
        running.communicate(timeout=60)
    decided = [
        (one["action"], one["decision"])
        for one in broker.records("--action", "file.write")
        if str(one["target"].get("path", "")).endswith("asked/one") and one["type"] == "decision"
    ]
    if answer == "no":
        assert ("file.write.create", "deny") in decided
        assert ("file.write.create", "allow") not in decided
    else:
        assert decided == [("file.write.create", "allow"), ("file.write.delete", "allow")]
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events[0] == "asked"
    said = broker.records("--type", "approval")[1]
    assert (said["detail"]["by"], said["detail"]["event"]) == (
        0,
        "refused" if answer == "no" else "approved",
    )
    assert broker.verify().returncode == 0


def test_what_was_granted_for_the_session_is_not_asked_again(
    making: Making, member: Person
) -> None:
    broker, key = ready(making, member)
    script = "for n in 1 2 3; do mkdir asked/one && rmdir asked/one || exit 1; done"
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        for _ in range(2):  # to make it, and to remove it: two attempts
            name = asked(running)
            broker.ask("approvals", "approve", name, "--session")
        running.communicate(timeout=60)
        assert running.returncode == 0
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events.count("asked") == 2
    assert events.count("used") == 4


def test_no_answer_in_time_is_a_no(making: Making, member: Person) -> None:
    broker, key = ready(making, member, approval_timeout=0.5)
    ran = member.finish(broker.run(member, "--agent", "demo", "--", "mkdir", "asked/one", key=key))
    assert ran.returncode == 1
    assert not (member.workspace / "asked/one").exists()
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events == ["asked", "expired"]


def test_a_storm_of_one_question_is_asked_once(making: Making, member: Person) -> None:
    broker, key = ready(making, member)
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", _STORM, key=key) as running:
        name = asked(running)
        _all_wait(broker, 8)
        broker.ask("approvals", "approve", name, "--session")
        out, _ = running.communicate(timeout=60)
    assert out == "one\n"
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events == ["asked", "approved"]


def test_once_is_one_attempt_however_many_wait_for_it(making: Making, member: Person) -> None:
    broker, key = ready(making, member)
    script = _STORM.replace("mkdir asked/one", "echo x >>asked/log").replace("ls", "cat asked/log")
    (member.workspace / "asked/log").touch()
    member.own()
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        first = asked(running)
        _all_wait(broker, 8)
        broker.ask("approvals", "approve", first)
        second = asked(running)
        assert second != first
        _all_wait(broker, 7)
        broker.ask("approvals", "deny", second)
        running.communicate(timeout=60)
    assert (member.workspace / "asked/log").read_text() == "x\n"
    found = [one["detail"] for one in broker.records("--type", "approval")]
    assert [(one["event"], one.get("tickets")) for one in found] == [
        ("asked", None),
        ("approved", 1),
        ("asked", None),
        ("refused", 7),
    ]


_STORM = "for n in 1 2 3 4 5 6 7 8; do { mkdir asked/one; } 2>>errors & done; wait; ls asked"


def _all_wait(broker: SystemBroker, count: int) -> None:
    """Wait until so many attempts wait for the one answer."""
    waiting = 0
    while waiting < count:
        found = broker.ask("approvals", "list")
        waiting = found[0]["waiting"]
        assert len(found) == 1


def test_the_agents_own_user_cannot_approve_it(making: Making, person: Person) -> None:
    if person.name == "root":
        return  # root may
    broker, key = ready(making, person)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(person, *words, key=key) as running:
        name = asked(running)
        tried = person.safeclaw("approvals", "approve", name, "--broker", str(broker.socket))
        assert tried.returncode == 125
        assert not (person.workspace / "asked/one").exists()
        broker.ask("approvals", "deny", name)
        running.communicate(timeout=60)
    assert not (person.workspace / "asked/one").exists()


WIDE = DEMO.replace('path: "asked/**", effect: ask', 'path: "asked/**", effect: allow')
CLOSED = DEMO.replace('path: "asked/**", effect: ask', 'path: "asked/**", effect: deny')


@pytest.mark.parametrize(("policy", "made"), [(WIDE, True), (CLOSED, False)])
def test_what_waits_for_a_yes_is_decided_by_a_policy_that_comes_meanwhile(
    making: Making, member: Person, policy: str, made: bool
) -> None:
    broker, key = ready(making, member)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(member, *words, key=key) as running:
        name = asked(running)
        broker.policy("demo", policy)
        assert running.wait(60) == (0 if made else 1)
        running.communicate()
    assert (member.workspace / "asked/one").exists() == made
    late = broker.safeclaw("approvals", "approve", name)
    assert late.returncode == 125
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events == ["asked", "withdrawn"]
    (decided,) = [
        one
        for one in broker.records("--action", "file.write.create", "--type", "decision")
        if str(one["target"]["path"]).endswith("asked/one")
    ]
    loads = [one for one in broker.records("--type", "policy_load") if one.get("session")]
    assert decided["policy"]["sha256"] == loads[1]["policy"]["sha256"]
    assert decided["decision"] == ("allow" if made else "deny")


def test_another_policy_that_still_asks_asks_anew(making: Making, member: Person) -> None:
    broker, key = ready(making, member)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(member, *words, key=key) as running:
        name = asked(running)
        broker.policy("demo", DEMO.replace("a person looks at it", "two people look at it"))
        second = asked(running)
        assert second != name
        broker.ask("approvals", "approve", second)
        running.communicate(timeout=60)
    assert (member.workspace / "asked/one").is_dir()
