"""Sessions with a real broker, forked as ``safeclaw run`` forks it."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import peer_credentials
from safeclaw.daemon.client import Client
from safeclaw.daemon.gate import Gate
from safeclaw.daemon.journal.reader import read
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict

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

    def __init__(self, state: Path, text: bytes = POLICY, grace: float = 60.0) -> None:
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
        self.gate.join(60)


@pytest.fixture
def state(tmp_path: Path) -> Iterator[Path]:
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


def packet(number: int, attempt: Attempt = READ, verdict: Verdict = ALLOW) -> bytes:
    tail = protocol.decided_tail(attempt, verdict, exe="/bin/a", enforced_by="test")
    return protocol.decided_packet(tail, number, 7, 5)


def opened(state: Path) -> Client:
    client = Client.connect(state)
    client.hello(hello())
    client.lease()
    return client
