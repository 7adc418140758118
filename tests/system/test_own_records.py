"""What an ordinary user is shown of the system's journal: the records of own sessions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from safeclaw.daemon import control
from safeclaw.daemon.client import Client
from safeclaw.errors import BrokerError
from tests.system.conftest import Person
from tests.system.system_broker import Making, SystemBroker, brokers, group_of

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
"""
#: Makes more records than a socket holds.
MANY = "for n in range(6000): open('made', 'w').close()"


@pytest.fixture(name="making")
def _making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), POLICY) as make:
        yield make


def run(broker: SystemBroker, person: Person, *command: str) -> None:
    policy = str(broker.config / "policies" / "demo.yaml")
    words = ("--policy", policy, "--workspace", str(person.workspace), "--", *command)
    ran = person.finish(broker.run(person, *words))
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_a_user_is_shown_own_sessions_and_root_everybodys(making: Making, person: Person) -> None:
    broker = making()
    secret = broker.base / "roots"
    secret.mkdir()
    environment = {**os.environ, "XDG_STATE_HOME": str(broker.base)}
    program = [sys.executable, "-m", "safeclaw.daemon.cli"]
    roots = Person("root", secret, program, environment)
    run(broker, roots, "touch", "secret-of-root")
    run(broker, person, "touch", "mine")
    starts = broker.records("--type", "session_start")
    (theirs, own) = (str(one["session"]) for one in starts)
    show = ("audit", "show", "--json", "--broker", str(broker.socket))

    def shown(*filters: str) -> list[dict[str, object]]:
        done = person.safeclaw(*show, *filters)
        assert done.returncode == 0, done.stderr
        assert "records of your own sessions" in done.stderr
        return [json.loads(line) for line in done.stdout.splitlines()]

    records = shown()
    assert {one["session"] for one in records} == {own}
    assert records == broker.records("--session", own)
    assert shown("--session", theirs) == []
    assert shown("--decision", "allow", "--last", "3") == records_of(broker, own)[-3:]
    # neighbours may be stamped alike: no record is older than the one before it
    stamps = sorted({str(one["ts"]) for one in records})
    first, after = stamps[len(stamps) // 3], stamps[-1]
    assert shown("--since", first, "--until", after) == [
        one for one in records if first <= str(one["ts"]) < after
    ]
    # the same request shows root everything, so that it was there to be shown
    everything = broker.safeclaw("audit", "show", "--json").stdout.splitlines()
    assert "secret-of-root" in "".join(everything)
    assert {own, theirs} <= {json.loads(line).get("session") for line in everything}
    # and as lines for a person
    text = person.safeclaw("audit", "show", "--broker", str(broker.socket), "--last", "1")
    assert "session_end" in text.stdout


def records_of(broker: SystemBroker, session: str) -> list[dict[str, object]]:
    return list(broker.records("--session", session, "--decision", "allow"))


#: Where the system's broker has its places, for whoever is in this mount namespace.
PLACES = """\
mount -t tmpfs tmpfs /run && mount -t tmpfs tmpfs /var/lib
mkdir /run/safeclaw /var/lib/safeclaw
mount --bind "$1" /run/safeclaw && mount --bind "$2" /var/lib/safeclaw
echo ready
read -r _
"""


@contextmanager
def installed(broker: SystemBroker) -> Generator[tuple[str, ...]]:
    """Yield a command that runs others where the broker is the system's."""
    places = (str(broker.socket.parent), str(broker.state))
    with subprocess.Popen(
        ["unshare", "--mount", "sh", "-euc", PLACES, "sh", *places],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "ready\n"
        yield ("nsenter", f"--mount=/proc/{holder.pid}/ns/mnt", "--")


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_without_options_it_is_the_journal_that_one_has_a_say_in(
    making: Making, person: Person
) -> None:
    broker = making()
    run(broker, person, "touch", "mine")
    with installed(broker) as person.within:
        # a member, who can read no file of it
        shown = person.safeclaw("audit", "show", "--json")
        assert shown.returncode == 0, shown.stderr
        assert shown.stderr == "safeclaw: these are the records of your own sessions\n"
        records = [json.loads(line) for line in shown.stdout.splitlines()]
        assert {one["subject"]["uid"] for one in records} == {person.uid}
        # somebody without a say: told so, and with a broker of one's own, its journal
        broker.configure({**broker.settings, "groups": {"run": "games"}})
        broker.stop()
        broker.start()
        refused = person.safeclaw("audit", "show")
        assert (refused.returncode, refused.stdout) == (125, "")
        assert "not permitted" in refused.stderr
        assert "hint: " in refused.stderr
        embedded = ("--broker", "embedded", "--workspace", str(person.workspace), "--", "true")
        ran = person.safeclaw("run", "--policy", "read-only", *embedded)
        assert ran.returncode == 0, ran.stderr
        own = person.safeclaw("audit", "show", "--json")
        assert own.returncode == 0, own.stderr
        assert own.stderr.endswith("; this is your own broker's journal\n")
        assert json.loads(own.stdout.splitlines()[0])["type"] == "genesis"
        same = person.safeclaw("audit", "show", "--json", "--broker", "embedded")
        assert same.stdout == own.stdout


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_who_does_not_read_holds_up_nobody_and_is_one_of_few(
    making: Making, person: Person
) -> None:
    broker = making()
    run(broker, person, "/usr/bin/python3", "-c", MANY)
    whole = len(broker.records())
    held: list[Client] = []
    for _ in range(2):
        client = Client.at(broker.socket)
        held.append(client)
        # it has begun to answer, and cannot go on: the socket is full
        next(client.records(control.Records()))
    third = Client.at(broker.socket)
    with pytest.raises(BrokerError, match="too many read the journal"):
        next(third.records(control.Records()))
    assert broker.ask("status")["fault"] is None
    run(broker, person, "true")
    # those who go make room: their programs end, for nobody reads them
    for client in held:
        client.channel.close()
    while True:
        again = Client.at(broker.socket)
        try:
            lines = list(again.records(control.Records()))
            break
        except BrokerError as problem:
            if "too many" not in problem.message:
                raise
        finally:
            again.channel.close()
    assert len(lines) > whole
    third.channel.close()


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_a_reading_that_is_killed_is_no_end(making: Making, person: Person) -> None:
    broker = making()
    run(broker, person, "/usr/bin/python3", "-c", MANY)
    assert broker.process is not None
    client = Client.at(broker.socket)
    lines = client.records(control.Records())
    next(lines)
    (child,) = children(broker.process.pid)
    os.kill(child, 9)
    with pytest.raises(BrokerError, match="broken off"):
        list(lines)
    client.channel.close()


def children(pid: int) -> list[int]:
    """Return the children of a process (proc(5), task/TID/children)."""
    found: list[int] = []
    for task in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{task}/children") as listed:
            found += map(int, listed.read().split())
    return found


@pytest.mark.parametrize("person", ["root"], indirect=True)
def test_what_cannot_be_asked_is_said(making: Making, person: Person) -> None:
    broker = making()
    for words, said in (
        (("--last", "1000000"), "100000 records at most"),
        (("--state", str(broker.state)), "--state or --broker"),
    ):
        done = person.safeclaw("audit", "show", "--broker", str(broker.socket), *words)
        assert done.returncode == 2
        assert said in done.stderr
    client = Client.at(broker.socket)
    with pytest.raises(BrokerError, match="not a request"):
        next(client.records(control.Records(last=-1)))
    client.channel.close()
