"""A peer that says to a real daemon what it likes, as a real user, over a real socket."""

from __future__ import annotations

import hashlib
import os
import pwd
import socket
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from safeclaw.daemon import control, protocol
from safeclaw.daemon.channel import Channel
from tests.system.system_broker import PATIENCE, SystemBroker, group_of

POLICY = b'version: "1.0"\nrules:\n  - {action: "file.*", path: "**", effect: allow}\n'
PATH: dict[str, Any] = {"path": "/harmless"}


def fingerprint_of(action: str, target: dict[str, Any]) -> str:
    text = msgspec.json.encode({"action": action, "target": target}, order="sorted")
    return hashlib.sha256(text).hexdigest()


GOOD = fingerprint_of("file.write", PATH)
_peers: list[Peer] = []


class Peer:
    """A connection of some user's, and what is said over it."""

    def __init__(self, broker: SystemBroker, name: str) -> None:
        entry = pwd.getpwnam(name)
        groups = os.getgroups()
        # The kernel takes down who connects when they connect (unix(7)).
        os.setgroups([])
        os.setegid(entry.pw_gid)
        os.seteuid(entry.pw_uid)
        try:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
            sock.connect(str(broker.socket))
        finally:
            os.seteuid(0)
            os.setegid(0)
            os.setgroups(groups)
        self.channel = Channel(sock, message_max=protocol.MESSAGE_MAX)
        _peers.append(self)

    def say(self, *messages: protocol.ToBroker | bytes) -> None:
        for message in messages:
            data = message if isinstance(message, bytes) else protocol.encode(message)
            self.channel.send(data, PATIENCE)

    def hear(self) -> object:
        """Return the next message, or None at the end."""
        data = self.channel.receive(PATIENCE)
        if data is None:
            return None
        if control.is_request(data):
            return control.decode_reply(data)
        return protocol.decode_to_supervisor(data)

    def ask(self, request: control.Request) -> control.Reply:
        self.say(control.encode(request))
        reply = self.hear()
        assert isinstance(reply, control.Reply)
        return reply

    def open(self, agent: str = "honest") -> str:
        """Open a session; return its id."""
        self.say(hello(agent))
        lease = self.hear()
        assert isinstance(lease, protocol.Lease)
        return lease.session


def hello(agent: str, command: str = "true", resume: str | None = None) -> protocol.Hello:
    return protocol.Hello(
        protocol.VERSION, agent, (command,), "/w", "p.yaml", POLICY, resume=resume
    )


def decided(target: object, fingerprint: str = GOOD, number: int = 1) -> bytes:
    fields = ("/bin/x", "file.write", target, fingerprint, "allow", "p:1", "", "notify")
    tail = b"".join(msgspec.msgpack.encode(field) for field in fields)
    return protocol.decided_packet(tail, number, 1, 1)


@pytest.fixture
def broker(ordinary_user: str) -> Iterator[SystemBroker]:
    if os.geteuid() != 0:
        pytest.skip("not root: the system's broker was not started")
    broker = SystemBroker(group_of(ordinary_user))
    broker.policy("demo", POLICY.decode())
    broker.start()
    yield broker
    broker.close()
    while _peers:
        _peers.pop().channel.close()


@pytest.fixture
def honest(broker: SystemBroker, ordinary_user: str) -> Iterator[Peer]:
    """An honest session of the same user, which must not feel the attack."""
    peer = Peer(broker, ordinary_user)
    peer.open()
    yield peer
    peer.say(decided(PATH), protocol.Flush())
    assert peer.hear() == protocol.Ack(1)
    assert broker.ask("status")["fault"] is None
    assert broker.verify().returncode == 0


def asking(target: dict[str, Any], ticket: int) -> protocol.Ask:
    fingerprint = fingerprint_of("file.write", target)
    return protocol.Ask(ticket, 1, "x", "file.write", target, fingerprint, "r", "")
