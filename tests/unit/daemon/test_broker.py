"""A real broker, forked as ``safeclaw run`` forks it, with a real journal on disk."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from safeclaw.daemon.client import Client
from safeclaw.daemon.journal.record import RecordType
from safeclaw.errors import BrokerError
from safeclaw.policies.model import Attempt, Decision, OtherTarget
from tests.unit.daemon.brokers import READ, SECRET, STRICT, Opened, hello, records, state

__all__ = ["state"]


def test_a_session_is_recorded_from_start_to_end(state: Path) -> None:
    session = Opened(state)
    session.gate.started({"layers": ["one"]})
    assert session.judge(READ).decision is Decision.ALLOW
    assert session.judge(SECRET).decision is Decision.DENY
    session.gate.violation(READ, pid=7, exe="/bin/a", reason="another inode")
    session.gate.limit("memory", "the session has used 64 MiB")
    assert session.gate.end("the agent has ended", 3)
    assert session.gate.unacknowledged == []
    session.close()
    found = records(state)
    assert found[-1].type is RecordType.CHECKPOINT
    # another one, where all this took more than a second
    found = [record for record in found if record.type is not RecordType.CHECKPOINT]
    assert [record.type.value for record in found] == [
        "genesis",
        "policy_load",
        "session_start",
        "decision",
        "decision",
        "violation",
        "limit",
        "session_end",
    ]
    start, allowed, denied, violation, limit, end = found[2:8]
    assert start.detail is not None
    assert start.detail["walls"] == {"layers": ["one"]}
    assert start.detail["command"] == ["agent", "arg"]
    assert [record.attempt for record in (start, allowed, denied, violation, limit)] == [
        1,
        2,
        3,
        4,
        5,
    ]
    assert (denied.decision, denied.rule) == ("deny", "p:2")
    assert denied.policy is not None
    assert denied.policy.sha256 == session.lease.policy.sha256
    assert denied.subject is not None
    assert (denied.subject.uid, denied.subject.pid) == (os.geteuid(), 7)
    assert violation.reason == "another inode"
    assert (limit.reason, limit.detail) == ("the session has used 64 MiB", {"limit": "memory"})
    assert end.detail == {"decisions": 2, "denials": 1, "status": 3}
    assert {record.session for record in found[1:8]} == {session.lease.session}


def test_the_broker_goes_with_its_last_session_and_leaves_no_socket(state: Path) -> None:
    first = Opened(state)
    second = Opened(state)
    assert first.client.broker_pid == second.client.broker_pid
    first.gate.end("done", 0)
    first.close()
    assert (state / "broker.sock").exists()
    second.gate.end("done", 0)
    second.close()
    assert not (state / "broker.sock").exists()
    os.waitpid(first.client.broker_pid, 0)
    third = Opened(state)
    assert third.client.broker_pid != first.client.broker_pid
    assert third.lease.chain == first.lease.chain
    third.close()


def test_state_and_socket_are_the_users_own(state: Path) -> None:
    session = Opened(state)
    assert state.stat().st_mode & 0o777 == 0o700
    assert (state / "broker.sock").stat().st_mode & 0o777 == 0o600
    session.close()


def test_a_state_directory_open_to_others_is_refused(state: Path) -> None:
    state.mkdir(mode=0o755)
    state.chmod(0o755)
    with pytest.raises(BrokerError, match="open to other users"):
        Client.connect(state)
    assert list(state.iterdir()) == []


def test_a_state_directory_that_cannot_be_made_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(BrokerError, match="cannot be used"):
        Client.connect(tmp_path / "file" / "state")


def test_many_who_start_at_once_get_one_broker(state: Path) -> None:
    children: list[tuple[int, int]] = []
    start_read, start_write = os.pipe()
    for _ in range(8):
        said_read, said_write = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(start_write)
            os.read(start_read, 1)
            try:
                session = Opened(state)
                os.write(said_write, f"{session.client.broker_pid} {session.lease.chain}".encode())
                session.gate.end("done", 0)
                session.client.finish()
            finally:
                os._exit(0)
        os.close(said_write)
        children.append((pid, said_read))
    os.close(start_read)
    os.close(start_write)
    answers: list[list[str]] = []
    for pid, said in children:
        with os.fdopen(said) as source:
            answers.append(source.read().split())
        os.waitpid(pid, 0)
    assert all(len(answer) == 2 for answer in answers)
    assert len({chain for _, chain in answers}) == 1
    assert len(records(state, RecordType.GENESIS)) == 1
    assert len(records(state, RecordType.SESSION_END)) == 8


def test_a_policy_that_is_wrong_is_refused_and_no_session_opens(state: Path) -> None:
    client = Client.connect(state)
    client.hello(hello(b"rules: 3\n"))
    with pytest.raises(BrokerError, match=r"p\.yaml:1"):
        client.lease()
    client.finish()
    os.waitpid(client.broker_pid, 0)
    assert records(state, RecordType.POLICY_LOAD) == []


def test_strict_records_are_on_disk_before_the_verdict(state: Path) -> None:
    session = Opened(state, STRICT)
    session.gate.started({})
    for count in range(1, 20):
        assert session.judge(READ).decision is Decision.ALLOW
        assert len(records(state, RecordType.DECISION)) == count
    session.close()


def test_sigterm_closes_the_journal_in_good_order(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    session.judge(READ)
    os.kill(session.client.broker_pid, signal.SIGTERM)
    assert session.lost_event.wait(60)
    assert session.lost == ["the broker ends the session: the broker is being stopped"]
    os.waitpid(session.client.broker_pid, 0)
    session.close()
    assert records(state)[-1].type is RecordType.CHECKPOINT
    assert len(records(state, RecordType.DECISION)) == 1


def test_an_attempt_with_two_megabytes_of_arguments_is_recorded(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    long = Attempt("other.thing", OtherTarget("x" * 2_000_000))
    assert session.judge(long).decision is Decision.DENY
    assert session.gate.end("done", 0)
    session.close()
    (decision,) = records(state, RecordType.DECISION)
    assert decision.target == {"what": "x" * 2_000_000}
