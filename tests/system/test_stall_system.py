"""What holds up nobody in a session holds up nobody with the system's broker, either.

And what one session leaves unanswered, however much of it, no other session feels.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from tests.system import test_stall as stall
from tests.system.conftest import Person
from tests.system.demo import DEMO, at_work
from tests.system.system_broker import PATIENCE, Making, SystemBroker, brokers, group_of

__all__ = ["crowd", "place"]

crowd, place = stall._crowd, stall._place  # pyright: ignore[reportPrivateUsage]
MANY = 1000
#: Has many processes open a file at once, when it is told to; each says so just before.
AT_ONCE = f"""\
import os
held, go = os.pipe()
for number in range({MANY}):
    if not os.fork():
        os.close(go)
        os.read(held, 1)
        os.write(1, b".")
        os._exit(len(os.read(os.open("data", os.O_RDONLY), 4)))
print("ready", flush=True)
os.read(0, 1)
os.close(go)
print(sum(os.waitstatus_to_exitcode(os.wait()[1]) for _ in range({MANY})))
"""


@pytest.fixture(name="making")
def _making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), DEMO) as make:
        yield make


@pytest.fixture(name="served")
def _served(place: Person, making: Making, monkeypatch: pytest.MonkeyPatch) -> Person:
    """The crowd's place, with every run served by the system's broker."""
    broker = making()
    command, whole = place.command, place.safeclaw

    def with_broker(*words: str) -> list[str]:
        return command(words[0], "--broker", str(broker.socket), *words[1:])

    def as_root(*words: str, **more: str) -> subprocess.CompletedProcess[str]:
        if words[0] == "approvals":
            return broker.safeclaw(*words)
        if words[:2] == ("audit", "verify"):
            return broker.verify()
        return whole(*words, **more)

    monkeypatch.setattr(place, "command", with_broker)
    monkeypatch.setattr(place, "safeclaw", as_root)
    monkeypatch.setattr(place, "records", broker.records)
    return place


@pytest.mark.parametrize(
    "holds_up_nobody",
    [
        stall.test_a_fifo_that_nobody_writes_holds_up_nobody_else,
        stall.test_who_waits_for_an_approval_or_on_a_fifo_holds_up_nobody_else,
        stall.test_with_few_descriptors_left_what_waits_is_bounded_and_the_others_go_on,
        stall.test_a_storm_of_forks_is_served_and_recorded_one_by_one,
    ],
)
def test_with_the_systems_broker(served: Person, holds_up_nobody: object) -> None:
    assert callable(holds_up_nobody)
    holds_up_nobody(served)


def begin(broker: SystemBroker, person: Person, where: Path) -> subprocess.Popen[str]:
    """Start the agent of many in another directory."""
    where.mkdir()
    (where / "data").write_text("data")
    (where / "agent.py").write_text(AT_ONCE)
    person.own()
    person.stdin = subprocess.PIPE
    words = ("--workspace", str(where), "--policy", str(person.base / "policy.yaml"))
    try:
        return broker.run(person, *words, "--", "/usr/bin/python3", str(where / "agent.py"))
    finally:
        person.stdin = subprocess.DEVNULL


def test_calls_that_one_session_leaves_in_flight_are_not_felt_by_another(
    making: Making, person: Person
) -> None:
    broker = making()
    key = broker.add("demo")
    (person.base / "policy.yaml").write_text(DEMO)
    with begin(broker, person, person.base / "crowd") as many:
        assert many.stdout is not None
        assert many.stdin is not None
        assert many.stdout.readline() == "ready\n"
        many.send_signal(signal.SIGSTOP)  # the supervisor answers nobody any more
        many.stdin.write("x")
        many.stdin.flush()
        seen = 0
        while seen < MANY:
            seen += len(os.read(many.stdout.fileno(), 65536))
        with at_work(broker, person, key) as (pace, running):
            pace.steps(100)
            assert not select.select([many.stdout], [], [], 0)[0], "its calls were answered"
            running.kill()
            pace.gone()
            running.communicate()
        many.send_signal(signal.SIGCONT)
        assert many.communicate()[0] == f"{MANY * 4}\n"
        assert many.returncode == 0
    assert broker.verify().returncode == 0


def slow_to_read(size: int) -> str:
    """Return a policy of about so many bytes, each rule of which stands for 256 globs."""
    letters = "abcdefghijklmnop"
    words = ",".join(first + second for first in letters for second in letters)
    rule = f'  - {{action: file.read, path: "**/{{{words}}}*/NUMBER", effect: allow}}\n'
    rules = (rule.replace("NUMBER", str(number)) for number in range(size // len(rule)))
    return DEMO + "".join(rules)


def test_policies_that_are_slow_to_read_end_no_other_session(
    making: Making, person: Person
) -> None:
    broker = making()
    key = broker.add("demo")
    text = slow_to_read(100_000).replace('  - {action: "*", effect: deny}\n', "")
    with contextlib.ExitStack() as stack, at_work(broker, person, key) as (pace, running):
        pace.steps(10)
        asking: list[Client] = []
        for number in range(20):
            client = Client.at(broker.socket)
            stack.callback(client.finish)
            # another text each time, so that none is known already
            changed = f"{text}# {number}\n".encode()
            client.hello(
                protocol.Hello(protocol.VERSION, "slow", ("true",), "/tmp", "slow.yaml", changed)
            )
            asking.append(client)
        pace.drain()
        pace.steps(1)
        for client in asking:
            assert client.lease(PATIENCE).policy.rules
        pace.drain()
        pace.steps(100)
        running.kill()
        pace.gone()
        running.communicate()
    assert not broker.records("--agent", "demo", "--decision", "deny", "--action", "file")
