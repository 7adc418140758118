"""The system's broker: agents with keys, questions to people, the kill switch, restarts."""

from __future__ import annotations

import re
import shutil
import signal
import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Person, somebody
from tests.system.system_broker import (
    KILLED,
    Making,
    Pace,
    SystemBroker,
    brokers,
    group_of,
    until_line,
)

DEMO = """\
version: "1.0"
rules:
  - {action: file.write, path: "asked/**", effect: ask, reason: "a person looks at it"}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
NARROW = DEMO.replace('path: "**", effect: allow', 'path: ["fifo", "*.py"], effect: allow')
STEPS = """\
import itertools, os, sys
said = os.open("fifo", os.O_WRONLY)
for number in itertools.count():
    try:
        open(f"made-{number}", "x").close()
    except PermissionError as problem:
        print("refused", flush=True)
        os.write(said, b"-")
        if "stop" in sys.argv:
            sys.exit(9)
    else:
        os.write(said, b".")
"""


@pytest.fixture(name="making")
def _making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), DEMO) as make:
        yield make


@pytest.fixture(name="member")
def _member(person: Person) -> Person:
    """Somebody who may start sessions: root, and an ordinary user of the group."""
    return person


@contextmanager
def pace_of(person: Person) -> Generator[Pace]:
    person.write("steps.py", STEPS)
    pace = Pace(person.workspace / "fifo", person.name)
    try:
        yield pace
    finally:
        pace.close()


@contextmanager
def at_work(
    broker: SystemBroker, person: Person, key: str, *more: str, isolation: str = "full"
) -> Generator[tuple[Pace, subprocess.Popen[str]]]:
    """Have the agent demo make steps."""
    options = ("--isolation", isolation, "--agent", "demo")
    words = (*options, "--", "/usr/bin/python3", "steps.py", *more)
    with pace_of(person) as pace, broker.run(person, *words, key=key) as running:
        yield pace, running


def refusals(broker: SystemBroker) -> list[dict[str, Any]]:
    return [one for one in broker.records("--decision", "deny") if one["rule"] == "access-control"]


# ---- agents and their keys


def test_a_registered_agent_runs_on_its_key_and_under_its_policy(
    making: Making, member: Person
) -> None:
    broker = making()
    key = broker.add("demo")
    ran = member.finish(
        broker.run(member, "--agent", "demo", "--", "sh", "-c", "echo > f", key=key)
    )
    assert ran.returncode == 0, ran.stderr
    assert (member.workspace / "f").exists()
    (start,) = broker.records("--type", "session_start")
    assert (start["agent"], start["detail"]["registered"]) == ("demo", True)
    assert start["subject"]["uid"] == member.uid
    assert start["detail"]["key"] == key.split("_")[1]
    (added,) = broker.records("--type", "agent_change")
    assert (added["agent"], added["detail"]["owner"]) == ("demo", "olga")
    secret = key.split("_", 2)[2].encode()
    for path in broker.base.rglob("*"):
        assert not path.is_file() or secret not in path.read_bytes(), f"the key is in {path}"
    assert broker.verify().returncode == 0


@pytest.mark.parametrize(
    "wrong", ["none", "another", "revoked", "rotated", "expired", "another-user", "own-policy"]
)
def test_a_key_that_is_not_good_opens_nothing_and_is_recorded(
    making: Making, member: Person, wrong: str
) -> None:
    broker = making()
    user = ("--user", "daemon") if wrong == "another-user" else ()
    key = broker.add("demo", *user)
    if wrong == "another-user" and member.name == "root":
        return  # root runs whatever it wants
    words = ["--agent", "demo"]
    match wrong:
        case "none":
            key = ""
        case "another":
            key = broker.add("other")
        case "revoked":
            broker.ask("agent", "revoke", "demo", "--why", "left the team")
        case "rotated":
            broker.ask("agent", "rotate-key", "demo")
        case "expired":
            # a key's end is a moment on the wall clock: it is moved, not waited for
            broker.stop()
            registry = broker.state / "agents.json"
            registry.write_text(re.sub(r'"expires": \d+', '"expires": 1', registry.read_text()))
            broker.start()
        case "own-policy":
            words += ["--policy", "read-only"]
        case _:
            pass
    ran = member.finish(broker.run(member, *words, "--", "touch", "made", key=key))
    assert ran.returncode == 125
    assert ran.stderr.startswith("safeclaw: ")
    assert "Traceback" not in ran.stderr
    assert not (member.workspace / "made").exists()
    assert not broker.records("--type", "session_start")
    (refused,) = refusals(broker)
    assert refused["action"] == "session.start"
    assert refused["agent"] == "demo"


def test_revoking_a_key_ends_what_runs_on_it(making: Making, member: Person) -> None:
    broker = making()
    old = broker.add("demo")
    new = str(broker.ask("agent", "rotate-key", "demo", "--overlap", "1h")["api_key"])
    with (
        pace_of(member) as pace,
        broker.run(
            member, "--agent", "demo", "--", "/usr/bin/python3", "steps.py", key=old
        ) as running,
    ):
        pace.steps(3)
        found = broker.ask("agent", "revoke", "demo", "--key", old.split("_")[1])
        assert found["sessions"] == 1
        pace.gone()
        assert running.wait(60) in KILLED
        running.communicate()
    ran = member.finish(broker.run(member, "--agent", "demo", "--", "true", key=new))
    assert ran.returncode == 0, ran.stderr
    changes = [one["detail"]["event"] for one in broker.records("--type", "agent_change")]
    assert changes == ["added", "rotated", "revoked"]
    # an API key is none that the chain is signed with
    assert broker.verify().returncode == 0, broker.verify().stdout


def test_a_name_cannot_be_taken_without_its_key(making: Making, member: Person) -> None:
    broker = making()
    broker.add("true")
    ran = member.finish(broker.run(member, "--", "true"))
    assert ran.returncode == 125
    assert not broker.records("--type", "session_start")


def test_who_is_in_no_group_is_refused_and_recorded(
    making: Making, shared_tree: Path | None
) -> None:
    broker = making()
    with somebody("nobody", shared_tree) as nobody:
        ran = nobody.finish(broker.run(nobody, "--", "true"))
        assert ran.returncode == 125
        assert "may not start sessions" in ran.stderr
        assert "hint:" in ran.stderr
        verb = nobody.safeclaw("kill", "--all", "--broker", str(broker.socket))
        assert verb.returncode == 125
        assert "not permitted" in verb.stderr
    (first, second) = refusals(broker)
    assert first["subject"]["uid"] == nobody.uid
    assert second["action"] == "control.kill"
    assert not (broker.state / "killed.json").exists()


def test_another_users_session_cannot_be_seen_stopped_or_answered(
    making: Making, person: Person, ordinary_user: str, shared_tree: Path | None
) -> None:
    if person.name != "root":
        return  # the session is root's, and the ordinary user is the other
    broker = making()
    with pace_of(person) as pace, broker.run(
        person, "--agent", "mine", "--policy", str(broker.config / "policies/demo.yaml"),
        "--", "/usr/bin/python3", "steps.py",
    ) as running:  # fmt: skip
        pace.steps(1)
        (session,) = broker.records("--type", "session_start")
        with somebody(ordinary_user, shared_tree) as other:
            for words in (("kill", "mine"), ("kill", str(session["session"])), ("kill", "--all")):
                done = other.safeclaw(*words, "--broker", str(broker.socket), "--json")
                assert done.returncode in (0, 125), done.stderr
                assert running.poll() is None
            pace.steps(3)
        broker.ask("kill", "mine")
        pace.gone()
        running.communicate()


# ---- restarts


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_a_restart_loses_no_session_and_no_record(
    making: Making, member: Person, how: signal.Signals
) -> None:
    broker = making()
    key = broker.add("demo")
    with at_work(broker, member, key) as (pace, running):
        pace.steps(20)
        broker.stop(how)
        broker.start()
        pace.steps(200)  # more than a pipe could have held from before
        broker.ask("kill", "demo")
        pace.gone()
        assert running.wait(60) in KILLED
        _, said = running.communicate()
    assert "nothing is allowed any more" not in said
    made = {str(path) for path in member.workspace.glob("made-*")}
    recorded = {
        one["target"]["path"]
        for one in broker.records("--action", "file.write.create", "--decision", "allow")
    }
    assert made <= recorded
    (start,) = broker.records("--type", "session_start")
    numbers = [
        one["attempt"]
        for one in broker.records("--session", str(start["session"]))
        if "attempt" in one
    ]
    assert numbers == list(range(1, len(numbers) + 1))
    assert not broker.records("--type", "gap")
    assert broker.verify().returncode == 0


def test_a_broker_that_does_not_come_back_stops_the_agent(making: Making, member: Person) -> None:
    broker = making(grace=0.2)
    key = broker.add("demo")
    with at_work(broker, member, key) as (pace, running):
        pace.steps(3)
        broker.stop(signal.SIGKILL)
        pace.gone()
        assert running.wait(60) in KILLED
        _, said = running.communicate()
    # the second where a busy machine has the time pass while it still tries
    assert "is not back after 0.2 s" in said or "no broker is there any more" in said
    broker.start()
    # nobody speaks for it any more: the next broker closes it, when its time is over
    assert broker.verify().returncode == 0


# ---- the kill switch


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_the_switch_stops_everything_and_holds_until_it_is_lifted(
    making: Making, member: Person, isolation: str
) -> None:
    broker = making()
    key = broker.add("demo")
    with at_work(broker, member, key, isolation=isolation) as (pace, running):
        pace.steps(3)
        found = broker.ask("kill", "--all", "--why", "drill")
        assert [one["agent"] for one in found["sessions"]] == ["demo"]
        pace.gone()
        assert running.wait(60) in KILLED
        assert "stopped by root: drill" in running.communicate()[1]
    broker.stop(signal.SIGKILL)
    broker.start()
    again = member.finish(broker.run(member, "--agent", "demo", "--", "true", key=key))
    assert again.returncode == 125
    assert "the kill switch is on" in again.stderr
    assert "drill" in broker.ask("status")["killed"][0]["why"]
    broker.ask("resume", "--all")
    after = member.finish(broker.run(member, "--agent", "demo", "--", "true", key=key))
    assert after.returncode == 0, after.stderr
    orders = [one["detail"]["order"] for one in broker.records("--type", "kill")]
    assert orders == ["stop", "resume"]


@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_a_supervisor_that_is_stopped_does_not_save_its_agent(
    making: Making, member: Person, isolation: str
) -> None:
    broker = making()
    key = broker.add("demo")
    with at_work(broker, member, key, isolation=isolation) as (pace, running):
        pace.steps(3)
        running.send_signal(signal.SIGSTOP)
        broker.ask("kill", "demo")
        pace.gone()
        running.communicate()
    (end,) = broker.records("--type", "session_end")
    assert end["reason"] == "the supervisor has gone"


def test_a_damaged_switch_allows_nothing(making: Making, member: Person) -> None:
    broker = making()
    key = broker.add("demo")
    broker.stop()
    (broker.state / "killed.json").write_text("[{")
    broker.start()
    ran = member.finish(broker.run(member, "--agent", "demo", "--", "touch", "made", key=key))
    assert ran.returncode == 125
    assert "damaged" in ran.stderr
    assert not (member.workspace / "made").exists()
    assert broker.safeclaw("status").returncode == 1


# ---- approvals


def asked(line: str) -> str:
    match = re.search(r"waiting for approval ([0-9a-f]+):", line)
    assert match, line
    return match[1]


def _asked_directory(person: Person) -> None:
    (person.workspace / "asked").mkdir()
    person.own()


@pytest.mark.parametrize("answer", ["once", "session", "no"])
def test_a_person_decides_and_the_attempt_waits(
    making: Making, member: Person, answer: str
) -> None:
    broker = making()
    key = broker.add("demo")
    _asked_directory(member)
    script = "mkdir asked/one && rmdir asked/one"
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        name = asked(until_line(running, "waiting for approval"))
        assert not (member.workspace / "asked/one").exists()
        (shown,) = broker.ask("approvals", "list")
        assert shown["approval"] == name
        assert shown["target"] == {"path": str(member.workspace / "asked/one")}
        if answer == "no":
            broker.ask("approvals", "deny", name, "--why", "not today")
        else:
            more = ["--session"] if answer == "session" else []
            broker.ask("approvals", "approve", name, *more, "--why", "fine")
            second = asked(until_line(running, "waiting for approval"))
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
    broker = making()
    key = broker.add("demo")
    _asked_directory(member)
    script = "for n in 1 2 3; do mkdir asked/one && rmdir asked/one || exit 1; done"
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        for _ in range(2):  # to make it, and to remove it: two attempts
            name = asked(until_line(running, "waiting for approval"))
            broker.ask("approvals", "approve", name, "--session")
        running.communicate(timeout=60)
        assert running.returncode == 0
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events.count("asked") == 2
    assert events.count("used") == 4


def test_no_answer_in_time_is_a_no(making: Making, member: Person) -> None:
    broker = making(approval_timeout=0.5)
    key = broker.add("demo")
    _asked_directory(member)
    ran = member.finish(broker.run(member, "--agent", "demo", "--", "mkdir", "asked/one", key=key))
    assert ran.returncode == 1
    assert not (member.workspace / "asked/one").exists()
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events == ["asked", "expired"]


def test_a_storm_of_one_question_is_asked_once(making: Making, member: Person) -> None:
    broker = making()
    key = broker.add("demo")
    _asked_directory(member)
    script = "for n in 1 2 3 4 5 6 7 8; do mkdir asked/one 2>>errors & done; wait; ls asked"
    with broker.run(member, "--agent", "demo", "--", "sh", "-c", script, key=key) as running:
        name = asked(until_line(running, "waiting for approval"))
        # all eight wait before the one answer is given
        waiting = 0
        while waiting < 8:
            found = broker.ask("approvals", "list")
            waiting = found[0]["waiting"]
            assert len(found) == 1
        broker.ask("approvals", "approve", name)
        out, _ = running.communicate(timeout=60)
    assert out == "one\n"
    events = [one["detail"]["event"] for one in broker.records("--type", "approval")]
    assert events == ["asked", "approved"]


def test_the_agents_own_user_cannot_approve_it(making: Making, person: Person) -> None:
    if person.name == "root":
        return  # root may
    broker = making()
    key = broker.add("demo")
    _asked_directory(person)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(person, *words, key=key) as running:
        name = asked(until_line(running, "waiting for approval"))
        tried = person.safeclaw("approvals", "approve", name, "--broker", str(broker.socket))
        assert tried.returncode == 125
        assert not (person.workspace / "asked/one").exists()
        broker.ask("approvals", "deny", name)
        running.communicate(timeout=60)
    assert not (person.workspace / "asked/one").exists()


# ---- policies that change


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


WIDE = DEMO.replace('path: "asked/**", effect: ask', 'path: "asked/**", effect: allow')
CLOSED = DEMO.replace('path: "asked/**", effect: ask', 'path: "asked/**", effect: deny')
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


@pytest.mark.parametrize(("policy", "made"), [(WIDE, True), (CLOSED, False)])
def test_what_waits_for_a_yes_is_decided_by_a_policy_that_comes_meanwhile(
    making: Making, member: Person, policy: str, made: bool
) -> None:
    broker = making()
    key = broker.add("demo")
    _asked_directory(member)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(member, *words, key=key) as running:
        name = asked(until_line(running, "waiting for approval"))
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
    broker = making()
    key = broker.add("demo")
    _asked_directory(member)
    words = ("--agent", "demo", "--", "mkdir", "asked/one")
    with broker.run(member, *words, key=key) as running:
        name = asked(until_line(running, "waiting for approval"))
        broker.policy("demo", DEMO.replace("a person looks at it", "two people look at it"))
        second = asked(until_line(running, "waiting for approval"))
        assert second != name
        broker.ask("approvals", "approve", second)
        running.communicate(timeout=60)
    assert (member.workspace / "asked/one").is_dir()


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
