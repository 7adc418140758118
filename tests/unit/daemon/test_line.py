"""The supervisor's line: what it does while the broker changes its mind, or is away."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import msgspec
import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.line import Line
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import Decision, Verdict
from tests.brokers_end import POLICY, READ, Far, Setting, judge, wait_for, wait_until

LEASE = protocol.Lease("s", load(POLICY, name="p.yaml"), (), "c", 1)


@pytest.fixture(name="setting")
def _setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


class Brokers:
    """What is found where the broker was: some that go at once, then one that stays."""

    def __init__(self) -> None:
        self.going = 0
        self.found: list[Channel] = []
        near, far = _pair()
        self.staying = near
        self.far = Far(far)

    def __call__(self) -> tuple[Channel, protocol.Lease]:
        channel = self.staying
        if self.going > len(self.found):
            channel, other = _pair()
            other.close()
        self.found.append(channel)
        return channel, LEASE

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.far.say(protocol.Ended())
        self.far.channel.close()
        self.far.thread.join()


@pytest.fixture(name="brokers")
def _brokers() -> Iterator[Brokers]:
    brokers = Brokers()
    yield brokers
    brokers.close()


def _pair() -> tuple[Channel, socket.socket]:
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(one, message_max=1 << 22), two


def test_what_was_on_its_way_when_the_broker_was_lost_gives_no_time(setting: Setting) -> None:
    told: list[protocol.ToSupervisor] = []
    line = Line(setting.near, on_lost=lambda _: None, on_message=told.append)
    line.listen()
    line.lose("it has written nothing")
    # As when another thread had asked, just before.
    setting.far.say(protocol.Granted(time.monotonic_ns()))
    setting.far.say(protocol.Asked(1, "a", 1.0))
    wait_until(lambda: bool(told))
    assert (line.lease_until, line.renew_at) == (0, 0)


@pytest.mark.parametrize("going", [0, 1, 3])
def test_a_broker_that_goes_again_is_looked_for_again(
    setting: Setting, brokers: Brokers, going: int
) -> None:
    brokers.going = going
    gate = setting.gate(adopt=_adopt, reconnect=brokers)
    gate.started({})
    judge(gate, READ)
    setting.far.channel.close()
    verdicts: list[Verdict] = []
    waiting = threading.Thread(target=lambda: verdicts.append(judge(gate, READ)), daemon=True)
    waiting.start()
    waiting.join(60)
    assert [verdict.decision for verdict in verdicts] == [Decision.ALLOW]
    assert len(brokers.found) == going + 1
    numbers = [one.number for one in brokers.far.decisions()]
    assert numbers == sorted(set(numbers))
    assert setting.lost == []


def test_another_policy_comes_while_an_attempt_waits_for_more_time(setting: Setting) -> None:
    begun, goes_on = threading.Event(), threading.Event()

    def adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
        begun.set()
        assert goes_on.wait(60)
        return _adopt(policy)

    setting.far.grants = False
    gate = setting.gate(adopt=adopt)
    gate.started({})
    setting.far.say(protocol.Replace(LEASE.policy))
    assert begun.wait(60)
    verdicts: list[Verdict] = []
    waiting = threading.Thread(target=lambda: verdicts.append(judge(gate, READ)))
    waiting.start()
    renew = wait_for(setting.far.renewals)
    goes_on.set()
    setting.far.grants = True
    setting.far.say(protocol.Granted(renew[0].at + 3_600_000_000_000))
    waiting.join()
    assert setting.lost == []
    assert verdicts[0].decision is Decision.ALLOW
    wait_until(lambda: any(isinstance(one, protocol.Adopted) for one in setting.far.heard))


def test_the_policy_of_a_broker_that_is_back_is_in_force_before_anything_is_sent(
    setting: Setting, brokers: Brokers
) -> None:
    heard: list[protocol.ToBroker] = []

    def adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
        heard.extend(brokers.far.heard)
        return _adopt(policy)

    gate = setting.gate(adopt=adopt, reconnect=brokers)
    gate.started({})
    setting.far.channel.close()
    wait_until(lambda: any(isinstance(one, protocol.Flush) for one in brokers.far.heard))
    assert heard == []
    assert [type(one) for one in brokers.far.heard] == [protocol.Adopted, protocol.Flush]
    assert judge(gate, READ).decision is Decision.ALLOW


def _adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
    return compile_policy(policy, Context("/w", "/home/u")), False, False


def _long(number: int) -> bytes:
    """Return a record of a little more than 1 MiB."""
    target = {"argv": ["x" * (1 << 20)], "program": "/bin/x"}
    fields = ("/bin/x", "shell.execute", target, "0" * 64, "deny", "p:1", "", "notify")
    tail = b"".join(msgspec.msgpack.encode(field) for field in fields)
    return protocol.decided_packet(tail, number, 1, 1)


def test_long_records_are_kept_up_to_so_many_bytes(setting: Setting) -> None:
    line = Line(setting.near, on_lost=setting.lost.append, on_message=lambda _: None, grace=60.0)
    line.listen()
    most = 0
    for number in range(1, 101):
        with line.sending:
            assert line.hand_over(number, _long(number))
        most = max(most, sum(map(len, line.pending())))
    # all of them are there, and were only asked about when they were too many
    assert 16 << 20 < most <= 32 << 20
    assert 2 <= sum(isinstance(one, protocol.Flush) for one in setting.far.heard) <= 8
    setting.far.say(protocol.Ended())


def test_a_long_record_that_did_not_leave_is_not_waited_for(
    setting: Setting, brokers: Brokers
) -> None:
    line = Line(
        setting.near,
        on_lost=setting.lost.append,
        on_message=lambda _: None,
        grace=60.0,  # nothing here waits so long
        reconnect=brokers,
    )
    for number in range(1, 31):
        assert line.hand_over(number, _long(number))
    wait_until(lambda: len(setting.far.decisions()) == 30)
    setting.far.channel.close()
    assert not line.hand_over(31, _long(31))
    line.listen()
    assert line.await_resumed()
    # whoever comes next has its number, and room
    assert line.hand_over(31, _long(31))
    assert setting.lost == []
    assert not any(isinstance(one, protocol.Flush) for one in setting.far.heard)
    # what lies unread when a socket is closed takes along what was said to its peer (unix(7))
    wait_until(lambda: len(brokers.far.decisions()) == 31)
    brokers.close()
    line.join(60)
    line.channel.close()
