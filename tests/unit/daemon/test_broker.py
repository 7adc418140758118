"""A real broker, forked as ``safeclaw run`` forks it, with a real journal on disk."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon import client as clients
from safeclaw.daemon import protocol
from safeclaw.daemon.channel import peer_credentials
from safeclaw.daemon.client import Client
from safeclaw.daemon.gate import Gate
from safeclaw.daemon.journal.reader import read
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.errors import BrokerError
from safeclaw.policies.compiled import Context, compile_policy
from safeclaw.policies.model import Attempt, Decision, FileTarget, OtherTarget, Verdict

POLICY = b"""
version: "1.0"
rules:
  - {action: file.read, path: "src/**", effect: allow, reason: sources}
  - {action: "*", effect: deny}
"""
STRICT = POLICY + b"assurance: strict\n"
READ = Attempt("file.read", FileTarget("/w/src/a"))
SECRET = Attempt("file.read", FileTarget("/w/secret"))
ALLOW = Verdict(Decision.ALLOW, "p:1", "sources")


def hello(text: bytes = POLICY, resume: str | None = None) -> protocol.Hello:
    return protocol.Hello(
        protocol.VERSION, "tester", ("agent", "arg"), "/w", "p.yaml", text, False, resume
    )


class Opened:
    """A session with a running broker."""

    def __init__(self, state: Path, text: bytes = POLICY, grace: float = 10.0) -> None:
        self.client = Client.connect(state)
        self.client.hello(hello(text))
        self.lease = self.client.lease()
        self.lost: list[str] = []
        self.lost_event = threading.Event()
        self.gate = Gate(
            self.client.channel,
            compile_policy(self.lease.policy, Context("/w", "/home/u", self.lease.protected)),
            on_lost=self._on_lost,
            on_denied=lambda attempt, verdict: None,
            strict=text == STRICT,
            grace=grace,
        )

    def _on_lost(self, reason: str) -> None:
        self.lost.append(reason)
        self.lost_event.set()

    def judge(self, attempt: Attempt) -> Verdict:
        return self.gate.judge(attempt, pid=7, exe="/bin/a", enforced_by="seccomp-notify")

    def close(self) -> None:
        self.client.finish()
        self.gate.join(10)


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Iterator[Path]:
    state = tmp_path / "state"
    yield state
    # What a failed test left behind must not outlive it; the lock tells who it is.
    with contextlib.suppress(OSError):
        directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY)
        with contextlib.closing(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) as probe:
            probe.connect(f"/proc/self/fd/{directory}/broker.sock")
            pid = peer_credentials(probe)[0]
            os.kill(pid, signal.SIGKILL)


def records(state: Path, *types: RecordType) -> list[Record]:
    return [record for record in read(state / "journal") if not types or record.type in types]


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
    assert [record.type.value for record in found] == [
        "genesis",
        "policy_load",
        "session_start",
        "decision",
        "decision",
        "violation",
        "limit",
        "session_end",
        "checkpoint",
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


def packet(number: int, attempt: Attempt = READ, verdict: Verdict = ALLOW) -> bytes:
    tail = protocol.decided_tail(attempt, verdict, exe="/bin/a", enforced_by="test")
    return protocol.decided_packet(tail, number, 7, 5)


def opened(state: Path) -> Client:
    client = Client.connect(state)
    client.hello(hello())
    client.lease()
    return client


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
    data = client.channel.receive(10)
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
    data = client.channel.receive(10)
    assert data is not None
    assert isinstance(protocol.decode_to_supervisor(data), protocol.Refused)
    client.finish()
    os.waitpid(client.broker_pid, 0)
    assert records(state, RecordType.DECISION) == []


def test_strict_records_are_on_disk_before_the_verdict(state: Path) -> None:
    session = Opened(state, STRICT)
    session.gate.started({})
    for count in range(1, 20):
        assert session.judge(READ).decision is Decision.ALLOW
        assert len(records(state, RecordType.DECISION)) == count
    session.close()


def test_a_killed_broker_stops_everything_and_the_next_writes_what_was_missing(
    state: Path,
) -> None:
    session = Opened(state)
    session.gate.started({})
    for _ in range(3000):
        assert session.judge(READ).decision is Decision.ALLOW
    os.kill(session.client.broker_pid, signal.SIGKILL)
    os.waitpid(session.client.broker_pid, 0)
    assert session.lost_event.wait(10)
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
    session = Opened(state, grace=0.1)
    session.gate.started({})
    assert session.judge(READ).decision is Decision.ALLOW
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
    assert session.lost_event.wait(10)
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


def test_sigterm_closes_the_journal_in_good_order(state: Path) -> None:
    session = Opened(state)
    session.gate.started({})
    session.judge(READ)
    os.kill(session.client.broker_pid, signal.SIGTERM)
    assert session.lost_event.wait(10)
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
