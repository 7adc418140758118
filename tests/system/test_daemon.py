"""The system's broker: agents with keys, the kill switch, restarts."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Person, somebody
from tests.system.demo import at_work, making, member, pace_of
from tests.system.system_broker import KILLED, Making, SystemBroker

__all__ = ["making", "member"]


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


#: Refused again and again, in one process: a command's start each time would take a minute.
FLOOD = """
import sys
from pathlib import Path
from safeclaw.daemon import control
from safeclaw.daemon.client import Client
from safeclaw.errors import BrokerError
for _ in range(70):
    try:
        Client.at(Path(sys.argv[1])).ask(control.Kill(None, ""))
    except BrokerError:
        continue
    sys.exit("not refused")
"""


def test_a_flood_of_refusals_leaves_its_number_when_the_broker_stops(
    making: Making, shared_tree: Path | None
) -> None:
    broker = making()
    with somebody("nobody", shared_tree) as nobody:
        flood = [nobody.program[0], "-c", FLOOD, str(broker.socket)]
        done = nobody.finish(nobody.start(flood, nobody.workspace))
    assert done.returncode == 0, done.stderr
    broker.stop()
    found = refusals(broker)
    assert len(found) == 61
    assert found[-1]["detail"] == {"refusals": 10}
    assert broker.verify().returncode == 0


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
    broker = making(grace=3)
    key = broker.add("demo")
    with at_work(broker, member, key) as (pace, running):
        pace.steps(3)
        broker.stop(signal.SIGKILL)
        pace.gone()
        assert running.wait(60) in KILLED
        _, said = running.communicate()
    # the second where a busy machine has the time pass while it still tries
    assert "is not back after 3 s" in said or "no broker is there any more" in said
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
