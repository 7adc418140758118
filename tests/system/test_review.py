"""The access review of a real broker: complete, recorded, and held against the chain."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator

import pytest

from safeclaw.daemon import control
from safeclaw.daemon.client import Client
from tests.system.conftest import Person
from tests.system.system_broker import Making, SystemBroker, as_somebody, brokers, group_of

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
"""
#: The group of auditors here, and somebody, whom every Debian has and nobody is.
_UUCP, AUDITOR = 10, 2


@pytest.fixture(name="making")
def _making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), POLICY) as make:
        yield make


def review(broker: SystemBroker) -> tuple[str, str]:
    """Return the review that an auditor is given, and its hash."""

    def ask() -> dict[str, str]:
        client = Client.at(broker.socket)
        try:
            found: dict[str, str] = client.ask(control.Review("third quarter"))
            return found
        finally:
            client.finish()

    found = as_somebody(AUDITOR, [_UUCP], ask)
    return found["text"], found["sha256"]


def test_an_auditor_learns_who_may_do_what_and_the_chain_knows_of_it(
    making: Making, person: Person, ordinary_user: str
) -> None:
    groups = {"run": group_of(ordinary_user), "admin": "news", "audit": "uucp"}
    broker = making(groups=groups)
    key = broker.add("demo", "--user", person.name)
    broker.add("idle")
    broker.add("gone")
    broker.ask("agent", "remove", "gone", "--why", "done")
    file = broker.state / "agents.json"
    before = file.stat().st_ino
    for _ in range(3):
        ran = person.finish(broker.run(person, "--agent", "demo", "--", "true", key=key))
        assert ran.returncode == 0, ran.stderr
    assert file.stat().st_ino == before, "a session has cost a write"
    text, sha256 = review(broker)
    (record,) = broker.records("--type", "export")
    assert hashlib.sha256(text.encode()).hexdigest() == sha256 == record["detail"]["sha256"]
    assert (record["action"], record["subject"]["uid"]) == ("agent.review", AUDITOR)
    assert (record["detail"]["agents"], record["reason"]) == (2, "third quarter")
    found = json.loads(text)
    demo, idle = found["agents"]
    assert (demo["owner"], demo["environment"], demo["user"]) == ("olga", "test", person.uid)
    assert demo["policy"]["meaning"][0].startswith("may: file.read, file.write **")
    assert demo["policy"]["sha256"] == broker.reload()["in_force"]["demo"]
    last = broker.records("--type", "session_start")[-1]
    assert demo["last_session"] == last["session"]
    assert demo["keys"][0]["used"] == demo["last_used"] is not None
    assert (idle["last_used"], idle["last_session"], idle["overdue"]) == (None, None, False)
    assert [one["name"] for one in found["removed"]] == ["gone"]
    # what is used is known after a restart, too
    broker.stop()
    broker.start()
    again = json.loads(review(broker)[0])["agents"][0]
    assert (again["last_session"], again["keys"]) == (demo["last_session"], demo["keys"])
    assert broker.verify().returncode == 0, broker.verify().stdout


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_what_is_overdue_or_not_in_force_is_said(making: Making, person: Person) -> None:
    del person
    broker = making()
    broker.add("demo")
    broker.policy("other", POLICY)
    broker.add("other", policy="other")
    broker.stop()
    # a key's age is moved, not waited for
    registry = broker.state / "agents.json"
    registry.write_text(re.sub(r'"created": \d+', '"created": 1', registry.read_text()))
    (broker.config / "policies" / "other.yaml").write_text("rules: [")
    broker.start()
    shown = broker.safeclaw("agent", "review")
    assert shown.returncode == 0, shown.stderr
    assert "demo: its newest key is older than 90 days" in shown.stderr
    assert "hint: safeclaw agent rotate-key demo" in shown.stderr
    assert "rotation OVERDUE since 1970-04-01" in shown.stdout
    assert "policy other since 2" in shown.stdout
    assert "not in force, so it may nothing: " in shown.stdout
    assert broker.records("--type", "export")[0]["detail"]["overdue"] == ["demo", "other"]
    as_json = broker.safeclaw("agent", "review", "--json")
    record = broker.records("--type", "export")[-1]
    assert hashlib.sha256(as_json.stdout.encode()).hexdigest() == record["detail"]["sha256"]
