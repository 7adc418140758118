"""The session's resolver and its /etc/hosts judge by the policy in force, whatever was before."""

from __future__ import annotations

import os
import socket
import struct
import threading
from collections.abc import Iterator

import pytest

from safeclaw.daemon import protocol
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import Decision
from safeclaw.sandbox import dns, names
from safeclaw.sandbox.hosts import Hosts
from safeclaw.sandbox.names import Names, NameServer
from tests.brokers_end import Setting, hurry, wait_until
from tests.descriptors import no_descriptor_left

WIDE = b"""
version: "1.0"
rules:
  - {action: network.connect, host: [api.example, "*.example"], effect: allow}
"""
NARROW = WIDE.replace(b'api.example, "*.example"', b"other.example")


@pytest.fixture(name="setting")
def _setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


class Policies:
    """A gate whose policy the test replaces."""

    def __init__(self, setting: Setting) -> None:
        self._far = setting.far
        self._adopted = threading.Semaphore(0)
        self._far.on_adopted = self._adopted.release
        self.gate = setting.gate(adopt=self._adopt)
        self.gate.started({})

    @staticmethod
    def _adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
        return compile_policy(policy, Context("/w", "/home/u")), False, False

    def replace(self, text: bytes) -> None:
        self._far.say(protocol.Replace(load(text, name="p.yaml")))
        assert self._adopted.acquire(timeout=60)


def test_a_name_is_judged_anew_under_another_policy(setting: Setting) -> None:
    # Nobody answers outside at this address: what may be asked for comes back as a failure.
    # The resolver keeps the socket for as long as this process lives.
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.77.77.77", 0))
    policies = Policies(setting)
    NameServer([server], Names(), policies.gate, 1).start()
    answers = [_ask(server)]
    for text in (WIDE, NARROW, WIDE):
        policies.replace(text)
        answers += [_ask(server), _ask(server)]
    allowed, denied = [dns.SERVFAIL] * 2, [dns.NXDOMAIN] * 2
    assert answers == [dns.NXDOMAIN, *allowed, *denied, *allowed]
    assert policies.gate.end("done", 0)
    # recorded once while nothing changes
    assert len(setting.far.decisions()) == 4


def test_a_name_that_was_looked_up_is_not_looked_up_without_a_broker(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(names, "_LIFETIME_MIN", 3600)
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind(("127.77.77.77", 0))
    policies = Policies(setting)
    NameServer([server], Names(), policies.gate, 1).start()
    policies.replace(WIDE)
    assert _ask(server) == dns.SERVFAIL
    setting.far.grants = False
    hurry(policies.gate)
    # until the lease has lapsed, which is still to come
    wait_until(lambda: _ask(server) == dns.NXDOMAIN)
    assert setting.lost


def test_the_names_of_a_hosts_file_are_judged_anew_under_another_policy(setting: Setting) -> None:
    policies = Policies(setting)
    policies.replace(WIDE)
    # one that no nameserver is asked for: a label has at most 63 bytes (RFC 1035, 2.3.4)
    hosts = Hosts((f"{'a' * 64}.example",), Names(), policies.gate, 1)
    for text in (WIDE, NARROW, WIDE):
        policies.replace(text)
        for _ in range(2):
            os.close(hosts.open())
    assert policies.gate.end("done", 0)
    said = [one.decision for one in setting.far.decisions()]
    assert said == [Decision.ALLOW, Decision.DENY, Decision.ALLOW]


def test_a_connection_that_there_is_no_descriptor_for_is_closed(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    server = socket.create_server(("127.0.0.1", 0))
    with socket.socket() as asker:
        asker.settimeout(60)
        NameServer([server], Names(), gate, 1).start()
        with no_descriptor_left():
            asker.connect(server.getsockname())
            assert asker.recv(1) == b""


def _ask(server: socket.socket) -> int:
    """Ask for api.example; return the answer's code (RFC 1035, 4.1.1)."""
    query = (
        struct.pack(">6H", 7, 0x100, 1, 0, 0, 0) + b"\3api\7example\0" + struct.pack(">HH", 1, 1)
    )
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.settimeout(60)
        asker.connect(server.getsockname())
        asker.send(query)
        return asker.recv(512)[3] & 15
