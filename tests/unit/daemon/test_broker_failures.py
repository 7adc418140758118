"""A real broker, and its supervisors, when one of them dies, stops, or does not do what it must."""

from __future__ import annotations

import os
import resource
import signal
import socket
from pathlib import Path

import pytest

from safeclaw.daemon import client as clients
from safeclaw.daemon import control, protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.record import RecordType
from safeclaw.errors import BrokerError
from safeclaw.policies.model import Decision
from tests.brokers_end import hurry
from tests.unit.daemon.brokers import READ, Opened, hello, opened, packet, records, state

__all__ = ["state"]


def test_a_missing_number_is_a_gap_in_the_record(state: Path) -> None:
    client = opened(state)
    for number in (1, 2, 5):
        client.channel.send(packet(number), 1)
    client.finish()
    (gap,) = records(state, RecordType.GAP)
    assert gap.detail == {"first": 3, "last": 4}
    assert [record.attempt for record in records(state, RecordType.DECISION)] == [1, 2, 5]


@pytest.mark.parametrize(
    ("bad", "word"),
    [
        (packet(2), "used twice"),
        (b"\xc1", "not a message"),
        (protocol.encode(protocol.Granted(1)), "not a message"),
        (packet(3)[:-14] + b"\xa9otherwise", "not a message"),
        (protocol.encode(hello()), "already open"),
        (packet(3).replace(b"/w/src/a", b"/w/src/b"), "fingerprint"),
    ],
)
def test_a_supervisor_that_breaks_the_rules_loses_its_session(
    state: Path, bad: bytes, word: str
) -> None:
    client = opened(state)
    client.channel.send(packet(1), 1)
    client.channel.send(packet(2), 1)
    client.channel.send(bad, 1)
    data = client.channel.receive(60)
    assert data is not None
    answer = protocol.decode_to_supervisor(data)
    assert isinstance(answer, protocol.Refused)
    assert word in answer.message
    client.finish()
    os.waitpid(client.broker_pid, 0)
    assert [record.attempt for record in records(state, RecordType.DECISION)] == [1, 2]
    (end,) = records(state, RecordType.SESSION_END)
    assert end.reason is not None
    assert word in end.reason


def test_before_hello_nothing_is_taken(state: Path) -> None:
    client = Client.connect(state)
    client.channel.send(packet(1), 1)
    data = client.channel.receive(60)
    assert data is not None
    assert isinstance(protocol.decode_to_supervisor(data), protocol.Refused)
    client.finish()
    os.waitpid(client.broker_pid, 0)
    assert records(state, RecordType.DECISION) == []


def test_a_killed_broker_stops_everything_and_the_next_writes_what_was_missing(
    state: Path,
) -> None:
    session = Opened(state)
    session.gate.started({})
    for _ in range(3000):
        assert session.judge(READ).decision is Decision.ALLOW
    os.kill(session.client.broker_pid, signal.SIGKILL)
    os.waitpid(session.client.broker_pid, 0)
    assert session.lost_event.wait(60)
    assert session.judge(READ).decision is Decision.DENY
    assert session.lost == ["the broker has gone"]
    assert not session.gate.end("done", 0)
    session.client.finish()
    clients.recover(
        session.client,
        hello(resume=session.lease.session),
        session.gate.unacknowledged,
        reason=session.lost[0],
        status=137,
    )
    decisions = records(state, RecordType.DECISION)
    assert [record.attempt for record in decisions] == list(range(2, 3003)), "each exactly once"
    assert [record.decision for record in decisions[-2:]] == ["allow", "deny"]
    (end,) = records(state, RecordType.SESSION_END)
    assert end.reason == "the broker has gone"
    assert end.session == session.lease.session
    assert records(state, RecordType.GAP) == []


def test_a_stopped_broker_lets_nothing_through(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    assert session.judge(READ).decision is Decision.ALLOW
    hurry(session.gate)
    os.kill(session.client.broker_pid, signal.SIGSTOP)
    os.waitpid(session.client.broker_pid, os.WUNTRACED)
    for _ in range(1_000_000):
        if session.judge(READ).decision is Decision.DENY:
            break
    else:
        pytest.fail("a stopped broker allowed everything")
    assert session.lost
    os.kill(session.client.broker_pid, signal.SIGCONT)
    session.close()
    os.waitpid(session.client.broker_pid, 0)
    # What was in the socket is written when it goes on.
    assert records(state, RecordType.GAP) == []
    (end,) = records(state, RecordType.SESSION_END)
    assert end.reason == "the supervisor has gone"


def test_a_supervisor_that_dies_leaves_an_end_in_the_record(state: Path) -> None:
    keeper = Opened(state)
    pid = os.fork()
    if pid == 0:
        session = Opened(state)
        session.judge(READ)
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(pid, 0)
    keeper.gate.end("done", 0)
    keeper.close()
    os.waitpid(keeper.client.broker_pid, 0)
    assert sorted(str(record.reason) for record in records(state, RecordType.SESSION_END)) == [
        "done",
        "the supervisor has gone",
    ]
    assert len(records(state, RecordType.DECISION)) == 1


def test_a_broker_that_cannot_write_says_why_and_nothing_is_allowed(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    size = sum(path.stat().st_size for path in (state / "journal").iterdir())
    resource.prlimit(session.client.broker_pid, resource.RLIMIT_FSIZE, (size, size))
    for _ in range(1_000_000):
        if session.judge(READ).decision is Decision.DENY:
            break
    else:
        pytest.fail("a broker that cannot write allowed everything")
    assert session.lost_event.wait(60)
    assert "cannot be written" in session.lost[0]
    # Another session is told the same while this broker lives.
    other = Client.connect(state)
    other.hello(hello())
    with pytest.raises(BrokerError, match="cannot be written"):
        other.lease()
    other.finish()
    tail = session.gate.unacknowledged
    session.close()
    os.waitpid(session.client.broker_pid, 0)
    clients.recover(
        session.client,
        hello(resume=session.lease.session),
        tail,
        reason=session.lost[0],
        status=137,
    )
    attempts = [record.attempt for record in records(state, RecordType.DECISION)]
    assert attempts == list(range(2, len(attempts) + 2))
    assert records(state, RecordType.DECISION)[-1].decision == "deny"


@pytest.mark.parametrize(
    ("path", "hint"),
    [
        (None, f"if it is stopped, kill -CONT {os.getpid()}; if it hangs, "),
        # Whoever listened there is systemd: nobody should be told to kill that.
        (clients.SYSTEM_SOCKET, "systemctl status safeclawd"),
    ],
    ids=["own", "system"],
)
def test_who_waits_for_a_silent_broker_is_told_what_to_do(
    tmp_path: Path, path: Path | None, hint: str
) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client = Client(ours, tmp_path, path)
    with theirs, pytest.raises(BrokerError, match="does not answer") as caught:
        client.lease(timeout=0)
    ours.close()
    assert caught.value.hint is not None
    assert caught.value.hint.startswith(hint)


def test_what_was_changed_and_could_not_be_recorded_is_not_confirmed(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    size = (state / "journal" / files.segment_name(1)).stat().st_size
    resource.prlimit(session.client.broker_pid, resource.RLIMIT_FSIZE, (size, size))
    admin = Client.connect(state)
    with pytest.raises(BrokerError, match="not recorded"):
        admin.ask(control.AddAgent("robot", "default", "me", "test", 3600))
    assert admin.ask(control.Status())["fault"] is not None
    admin.finish()
    session.close()
    os.waitpid(session.client.broker_pid, 0)
    assert records(state, RecordType.AGENT_CHANGE) == []
