"""Who may do what: every cell of the table in docs/access.md, tried with a real daemon."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, Final

import pytest

from safeclaw.daemon import control, protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.requests import NEEDED
from safeclaw.errors import BrokerError
from tests.system.conftest import ROOT, Person
from tests.system.system_broker import SystemBroker, as_somebody

POLICY = """\
version: "1.0"
rules:
  - {action: "*", path: "/**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: network, effect: allow}
"""
#: Groups that every Debian has and nobody is in, and users that nobody is.
_GROUPS: Final = {"run": "games", "admin": "news", "audit": "uucp"}
_GIDS: Final = {"games": 60, "news": 9, "uucp": 10}
_WHO: Final[dict[str, tuple[int, list[int]]]] = {
    "root": (0, [0]),
    "safeclaw-admin": (1, [_GIDS["news"]]),
    "safeclaw-audit": (2, [_GIDS["uucp"]]),
    "safeclaw": (3, [_GIDS["games"]]),
    "others": (4, []),
}
#: Nothing here is there, but for what is asked about: permitted is what gets as far as that.
_REQUESTS: Final[dict[str, control.Request]] = {
    "status": control.Status(),
    "ps": control.Sessions(),
    "kill": control.Kill("nobody-is-called-this"),
    "resume": control.Resume("nobody-is-called-that"),
    "approvals": control.ListApprovals(),
    "approvals approve": control.Approve("no-such"),
    "approvals deny": control.Refuse("no-such"),
    "audit show": control.Records(),
    "agent list": control.Agents(),
    "agent review": control.Review("a try"),
    "agent add": control.AddAgent("no name!", "demo", "o", "e", 3600),
    "agent rotate-key": control.RotateKey("nobody", 3600),
    "agent revoke": control.RevokeKey("nobody"),
    "agent remove": control.RemoveAgent("nobody"),
    "agent set-policy": control.SetPolicy("nobody", "demo"),
    "reload": control.Reload(),
    "policy pending": control.PendingPolicies(),
    "policy approve": control.ApprovePolicy("nothing", "0" * 64),
    "policy refuse": control.RefusePolicy("nothing", "0" * 64),
    "policy rollback": control.RollBack("nothing", "previous", "a try"),
    "policy text": control.PolicyText("0" * 64),
}
#: What an agent tries; what it gets is printed as it is.
LOOK = """\
import json, os, socket, sys
found = {}
for path in sys.argv[1:]:
    try:
        if path.endswith(".sock"):
            kind = socket.SOCK_SEQPACKET if "broker" in path else socket.SOCK_STREAM
            with socket.socket(socket.AF_UNIX, kind) as sock:
                sock.connect(path)
        else:
            os.listdir(path)
        found[os.path.basename(path)] = "seen"
    except OSError as problem:
        found[os.path.basename(path)] = type(problem).__name__
print(json.dumps(found))
"""


def table() -> dict[str, dict[str, str]]:
    """Return the table: for each command, each column's word."""
    lines = (ROOT / "docs" / "access.md").read_text().splitlines()
    rows = [
        [cell.strip().strip("`") for cell in line.strip("|").split("|")]
        for line in lines
        if line.startswith("| ")
    ]
    return {row[0]: dict(zip(rows[0][1:], row[1:], strict=True)) for row in rows[2:]}


@pytest.fixture(name="broker")
def _broker() -> Iterator[SystemBroker]:
    if os.geteuid() != 0:
        pytest.skip("not root: the system's broker was not started")
    broker = SystemBroker("games", groups=_GROUPS)
    try:
        broker.policy("demo", POLICY)
        broker.start()
        yield broker
    finally:
        broker.close()


def as_user(who: str, work: Callable[[], Any]) -> Any:
    """Do something in a process that is somebody else's; return what it returns."""
    return as_somebody(*_WHO[who], work)


def _request(broker: SystemBroker, request: control.Request) -> tuple[bool, Any]:
    """Return whether a request is permitted, and what is answered."""
    client = Client.at(broker.socket)
    try:
        if isinstance(request, control.Records):
            return True, [line.decode() for line in client.records(request)]
        return True, client.ask(request)
    except BrokerError as problem:
        return "not permitted" not in problem.message, problem.message
    finally:
        client.finish()


def _session(broker: SystemBroker) -> bool:
    client = Client.at(broker.socket)
    try:
        client.hello(protocol.Hello(protocol.VERSION, "a", ("a",), "/", "demo", POLICY.encode()))
        client.lease()
    except BrokerError as problem:
        if "may not start" not in problem.message:
            raise
        return False
    finally:
        client.finish()
    return True


def _metrics(path: Path) -> bool:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.connect(str(path))
        sock.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        return sock.makefile("rb").readline().split()[1] == b"200"


def test_the_table_has_every_request() -> None:
    assert {type(one) for one in _REQUESTS.values()} == set(NEEDED)
    assert table().keys() == {*_REQUESTS, "run", "metrics"}


def test_every_cell_of_the_table_holds(broker: SystemBroker) -> None:
    refused: list[tuple[int, str]] = []
    found: dict[str, dict[str, bool]] = {}
    metrics = broker.socket.parent / "metrics.sock"
    for who, (uid, _) in _WHO.items():
        for verb, request in _REQUESTS.items():
            permitted, _said = as_user(who, partial(_request, broker, request))
            found.setdefault(verb, {})[who] = permitted
            if not permitted:
                refused.append((uid, f"control.{control.target(request)['what']}".split()[0]))
        found.setdefault("run", {})[who] = as_user(who, lambda: _session(broker))
        found.setdefault("metrics", {})[who] = as_user(who, lambda: _metrics(metrics))
        refused += [(uid, "session.start")] * (not found["run"][who])
        refused += [(uid, "control.metrics")] * (not found["metrics"][who])
    said = {verb: {who: words[who] != "no" for who in _WHO} for verb, words in table().items()}
    assert found == said
    recorded = [
        (one["subject"]["uid"], one["action"])
        for one in broker.records("--decision", "deny")
        if one["rule"] == "access-control"
    ]
    assert sorted(recorded) == sorted(refused)


def test_own_is_own_and_all_is_all(broker: SystemBroker) -> None:
    held = Client.at(broker.socket)  # root's session
    held.hello(protocol.Hello(protocol.VERSION, "a", ("a",), "/", "demo", POLICY.encode()))
    held.lease()
    words = table()
    for who in _WHO:
        if words["ps"][who] == "no":
            continue
        seen = 1 if words["ps"][who] == "all" else 0
        _, sessions = as_user(who, lambda: _request(broker, control.Sessions()))
        _, status = as_user(who, lambda: _request(broker, control.Status()))
        assert len(sessions) == seen, who
        assert status["sessions"] == seen, who
        assert ("policies" in status) == bool(seen), who
        _, lines = as_user(who, partial(_request, broker, control.Records()))
        records = [json.loads(line) for line in lines]
        uids = {one.get("subject", {}).get("uid") for one in records if "session" in one}
        assert uids == ({0} if words["audit show"][who] == "all" else set()), who
        assert bool(records) == (words["audit show"][who] == "all"), who
    held.finish()


def test_an_agent_sees_nothing_of_the_broker(broker: SystemBroker, person: Person) -> None:
    person.write("look.py", LOOK)
    broker.configure({**broker.settings, "groups": {**_GROUPS, "run": "safeclaw-test"}})
    broker.stop()
    broker.start()
    places = (
        *(str(broker.socket), str(broker.socket.parent / "metrics.sock")),
        *(str(broker.state), str(broker.config), str(broker.socket.parent)),
    )
    command = ("/usr/bin/python3", "look.py", *places)
    # the control: outside the walls the sockets are there for the same user
    outside = person.finish(person.start(list(command), person.workspace))
    seen = json.loads(outside.stdout)
    assert (seen["broker.sock"], seen["metrics.sock"], seen["run"]) == ("seen", "seen", "seen")
    policy = str(broker.config / "policies" / "demo.yaml")
    ran = person.finish(broker.run(person, "--policy", policy, "--", *command))
    assert ran.returncode == 0, ran.stderr
    assert "seen" not in json.loads(ran.stdout).values(), ran.stdout
