"""Supervisors that do not obey: sessions taken up again, and a kill switch that is ignored.

That the same daemon still serves an honest peer afterwards is the positive control of each.
"""

from __future__ import annotations

import contextlib
import os
import socket
import time
from typing import Any

import msgspec
import pytest

from safeclaw.daemon import control, protocol
from tests.system.peers import (
    GOOD,
    PATH,
    Peer,
    asking,
    broker,
    decided,
    fingerprint_of,
    hello,
    honest,
)
from tests.system.system_broker import PATIENCE, SystemBroker

__all__ = ["broker", "honest"]


# ---- resuming


@pytest.mark.parametrize("restart", [True, False])
def test_who_comes_back_may_do_what_was_approved_and_is_not_recorded_and_no_more(
    restart: bool, broker: SystemBroker, ordinary_user: str
) -> None:
    rules = b'version: "1.0"\nrules:\n  - {action: file.write, path: "**", effect: ask}\n'

    def connect(resume: str | None) -> tuple[Peer, str]:
        words = (protocol.VERSION, "demo", ("true",), "/w", "p.yaml", rules)
        for _ in range(1000):  # the end of the last connection may not have arrived yet
            peer = Peer(broker, ordinary_user)
            peer.say(protocol.Hello(*words, resume=resume))
            lease = peer.hear()
            if isinstance(lease, protocol.Lease):
                return peer, lease.session
            peer.channel.close()
        raise AssertionError("it cannot come back")

    def deed(number: int, target: dict[str, Any]) -> bytes:
        fingerprint = fingerprint_of("file.write", target)
        fields = ("/bin/x", "file.write", target, fingerprint, "allow", "p:1", "", "notify")
        tail = b"".join(msgspec.msgpack.encode(field) for field in fields)
        return protocol.decided_packet(tail, number, 1, 1)

    def away_and_back() -> Peer:
        if restart:
            broker.stop(9)
            broker.start()
        peer.channel.close()
        return connect(ident)[0]

    peer, ident = connect(None)
    approved = [{"path": f"/{number}"} for number in range(2)]
    peer.say(protocol.Started(1, {}))
    for ticket, target in enumerate(approved):
        peer.say(asking(target, ticket))
        asked = peer.hear()
        assert isinstance(asked, protocol.Asked)
        assert Peer(broker, "root").ask(control.Approve(asked.approval)).error is None
        assert isinstance(peer.hear(), protocol.Answer)
    peer.say(deed(2, approved[0]), protocol.Flush())
    while peer.hear() != protocol.Ack(2):
        pass
    # One was done and recorded, one was approved only.
    peer = away_and_back()
    peer.say(deed(3, approved[1]), protocol.Flush())
    while (said := peer.hear()) != protocol.Ack(3):
        assert said == protocol.Ack(2)  # of what was on disk when it came back
    for target in ({"path": "/never-asked"},) if restart else ({"path": "/x"}, *approved):
        if not restart:
            peer = away_and_back()
        peer.say(deed(4, target))
        assert isinstance(peer.hear(), protocol.Refused), target
    recorded = broker.records("--session", ident, "--type", "decision")
    assert [one["target"] for one in recorded] == approved


def test_who_comes_back_first_says_what_the_broker_between_had_it_adopt(
    broker: SystemBroker, ordinary_user: str
) -> None:
    def policy(path: str) -> str:
        rule = f'{{action: file.read, path: "{path}/**", effect: allow}}'
        return f'version: "1.0"\nrules:\n  - {rule}\n'

    def connect(resume: str | None = None) -> tuple[Peer, protocol.Lease]:
        peer = Peer(broker, ordinary_user)
        words = (protocol.VERSION, "demo", ("true",), "/w", "", b"")
        peer.say(protocol.Hello(*words, resume=resume, credential=key))
        lease = peer.hear()
        assert isinstance(lease, protocol.Lease), lease
        return peer, lease

    broker.policy("demo", policy("one"))
    key = broker.add("demo")
    peer, first = connect()
    peer.say(protocol.Started(1, {}), protocol.Flush())
    while peer.hear() != protocol.Ack(1):
        pass
    leases: list[protocol.Lease] = []
    for path in ("two", "three"):
        broker.stop(9)
        peer.channel.close()
        broker.policy("demo", policy(path))
        broker.start()
        peer, lease = connect(first.session)
        leases.append(lease)
    # The second broker died before what it had the session adopt was on disk.
    between, last = (lease.policy.sha256 for lease in leases)
    peer.say(decided(PATH, number=2), protocol.Adopted(3, between), decided(PATH, number=4))
    peer.say(protocol.Adopted(5, last), protocol.Flush())
    while (said := peer.hear()) != protocol.Ack(5):
        assert isinstance(said, protocol.Ack), said
    peer.say(protocol.Adopted(6, between))
    assert isinstance(peer.hear(), protocol.Refused), "nor is there a way back to it"
    loaded = broker.records("--session", first.session, "--type", "policy_load")
    assert [one["policy"]["sha256"] for one in loaded] == [first.policy.sha256, between, last]
    assert [one["detail"].get("previous") for one in loaded[1:]] == [first.policy.sha256, between]
    done = broker.records("--session", first.session, "--type", "decision")
    assert [one["policy"]["sha256"] for one in done] == [first.policy.sha256, between]


@pytest.mark.parametrize("who", ["root", "itself"])
def test_naming_a_session_that_runs_neither_ends_nor_touches_it(
    who: str, broker: SystemBroker, ordinary_user: str
) -> None:
    victim = Peer(broker, ordinary_user)
    ident = victim.open("victim")
    victim.say(protocol.Ask(1, 1, "x", "file.write", PATH, GOOD, "r", ""))
    assert isinstance(victim.hear(), protocol.Asked)
    thief = Peer(broker, "root" if who == "root" else ordinary_user)
    thief.say(hello("victim" if who == "itself" else "thief", resume=ident))
    assert isinstance(thief.hear(), protocol.Refused)
    assert thief.hear() is None
    assert len(broker.ask("approvals")) == 1, "the victim's question was withdrawn"
    assert broker.records("--session", ident, "--type", "session_end") == []
    now = time.monotonic_ns()
    victim.say(protocol.Renew(now))
    assert victim.hear() == protocol.Granted(now)


def test_a_session_is_resumed_by_its_user_as_its_agent_and_only_once(
    broker: SystemBroker, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    ident = peer.open("demo")
    peer.say(protocol.Started(1, {}), protocol.Flush())
    assert peer.hear() == protocol.Ack(1)
    broker.stop(9)
    broker.start()
    for name, agent, resume in (
        ("root", "demo", ident),  # another user
        (ordinary_user, "other", ident),  # by another name, for which no order stands
        (ordinary_user, "demo", "payroll"),  # kill payroll would find it, and not payroll
        (ordinary_user, "demo", "0" * 16),
    ):
        thief = Peer(broker, name)
        thief.say(hello(agent, resume=resume))
        assert isinstance(thief.hear(), protocol.Refused), (name, agent, resume)
    peers = [Peer(broker, ordinary_user) for _ in range(2)]
    for peer in peers:
        peer.say(hello("demo", resume=ident))
    assert isinstance(peers[0].hear(), protocol.Lease)
    assert isinstance(peers[1].hear(), protocol.Refused)
    now = time.monotonic_ns()
    peers[0].say(protocol.Renew(now))
    assert peers[0].hear() == protocol.Granted(now)


# ---- the kill switch


def test_a_users_orders_do_not_fill_the_kill_switch_and_all_can_still_be_stopped(
    broker: SystemBroker, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    for number in range(64):
        assert peer.ask(control.Kill(f"x{number}")).error is None
    assert "64 orders" in str(peer.ask(control.Kill("x64")).error)
    assert peer.ask(control.Kill("x1", "again")).error is None
    peer.say(control.encode(control.Kill("y" * 60_000)))
    assert "not a request" in str(getattr(peer.hear(), "error", ""))
    assert len(broker.ask("status")["killed"]) == 64
    root = Peer(broker, "root")
    assert root.ask(control.Kill("x64")).error is None
    assert peer.ask(control.Kill(None)).error is None
    assert peer.ask(control.Resume(None)).error is None
    other = Peer(broker, ordinary_user)
    other.say(hello("x3"))
    assert isinstance(other.hear(), protocol.Refused)


def test_who_ignores_the_kill_switch_gets_no_more_time_and_nobody_dies_in_its_place(
    broker: SystemBroker, ordinary_user: str
) -> None:
    # It connects, leaves the socket to a child, and its number to whoever gets it.
    ours, theirs = socket.socketpair()
    parent = os.fork()
    if parent == 0:
        peer = Peer(broker, ordinary_user)
        if os.fork() == 0:
            ident = peer.open("deaf")
            ours.close()
            theirs.send(ident.encode())
            told = peer.hear()
            peer.say(protocol.Renew(time.monotonic_ns()))
            theirs.send(type(told).__name__.encode())
            theirs.send(type(peer.hear()).__name__.encode())
        os._exit(0)
    theirs.close()
    os.waitpid(parent, 0)
    ours.settimeout(PATIENCE)
    assert len(ours.recv(100)) == 16
    bystander = os.fork()
    if bystander == 0:
        import signal

        signal.pause()
        os._exit(0)
    try:
        told = broker.safeclaw("kill", "deaf")
        assert told.returncode == 125
        assert "not known to have stopped: deaf (pid" in told.stderr
        said = b""
        while piece := ours.recv(100):
            said += piece
        assert said == b"KillRefused"
        assert os.waitpid(bystander, os.WNOHANG) == (0, 0)
        (end,) = broker.records("--type", "session_end")
        assert end["reason"] == "ended by the broker: it did not stop when it was told to"
    finally:
        ours.close()
        os.kill(bystander, 9)
        os.waitpid(bystander, 0)


def test_who_does_not_read_is_not_listened_to(
    broker: SystemBroker, honest: Peer, ordinary_user: str
) -> None:
    peer = Peer(broker, ordinary_user)
    peer.open("deaf")
    renew = protocol.encode(protocol.Renew(1))
    sent = 0
    with contextlib.suppress(TimeoutError):
        while sent < 100_000:
            peer.channel.send(renew, 1.0)
            sent += 1
    assert sent < 100_000
