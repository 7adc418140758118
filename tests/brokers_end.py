"""A broker's end that the test plays, on a real socket, and a gate at the other."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable
from typing import cast

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.gate import Adoption, Gate
from safeclaw.daemon.line import Reconnect
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict

#: How long what must come may take on a machine that does other things as well, in seconds.
PATIENCE = 60.0
POLICY = b"""
version: "1.0"
rules:
  - {action: file.read, path: "src/**", effect: allow, reason: sources}
  - {action: file.write, path: "ask/**", effect: ask}
  - {action: "*", effect: deny}
"""
READ = Attempt("file.read", FileTarget("/w/src/a"))
SECRET = Attempt("file.read", FileTarget("/w/secret"))


def compiled() -> CompiledPolicy:
    return compile_policy(load(POLICY, name="p.yaml"), Context("/w", "/home/u"))


class Far:
    """The broker's end: answers by its own rules, and remembers what it was told."""

    def __init__(self, sock: socket.socket) -> None:
        self.channel = Channel(sock, message_max=1 << 22)
        self.heard: list[protocol.ToBroker] = []
        self.grants = True
        self.acknowledges = True
        self.on_adopted: Callable[[], object] = lambda: None
        self.thread = threading.Thread(target=self._serve)
        self.thread.start()

    def _serve(self) -> None:
        number = 0
        while True:
            try:
                data = self.channel.receive()
            except OSError:
                return
            if data is None:
                return
            message = protocol.decode_to_broker(data)
            self.heard.append(message)
            match message:
                case protocol.Renew(at):
                    if self.grants:
                        self.say(protocol.Granted(at))
                case protocol.Flush():
                    if self.acknowledges:
                        self.say(protocol.Ack(number))
                case protocol.Decided(number=n) | protocol.Started(number=n):
                    number = n
                case protocol.Adopted():
                    self.on_adopted()
                case protocol.End():
                    self.say(protocol.Ack(number))
                    self.say(protocol.Ended())
                case _:
                    pass

    def say(self, message: protocol.ToSupervisor) -> None:
        self.channel.send(protocol.encode(message), 1.0)

    def renewals(self) -> list[protocol.Renew]:
        return [message for message in self.heard if isinstance(message, protocol.Renew)]

    def decisions(self) -> list[protocol.Decided]:
        return [message for message in self.heard if isinstance(message, protocol.Decided)]


class Setting:
    """A gate, the far end, and what the gate reported."""

    def __init__(self) -> None:
        one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.near = Channel(one, message_max=1 << 22)
        self.far = Far(two)
        self.lost: list[str] = []
        self.lost_event = threading.Event()
        self.denied: list[Attempt] = []

    def gate(
        self,
        *,
        grace: float = PATIENCE,
        strict: bool = False,
        observe: bool = False,
        adopt: Adoption | None = None,
        reconnect: Reconnect | None = None,
    ) -> Gate:
        def on_lost(reason: str) -> None:
            self.lost.append(reason)
            self.lost_event.set()

        def on_denied(attempt: Attempt, verdict: Verdict) -> None:
            assert verdict.decision is Decision.DENY
            self.denied.append(attempt)

        return Gate(
            self.near,
            compiled(),
            on_lost=on_lost,
            on_denied=on_denied,
            strict=strict,
            observe=observe,
            grace=grace,
            adopt=adopt,
            reconnect=reconnect,
        )

    def close(self) -> None:
        self.near.close()
        self.far.channel.close()
        self.far.thread.join()


def judge(gate: Gate, attempt: Attempt) -> Verdict:
    return gate.judge(attempt, pid=7, exe="/bin/a", enforced_by="seccomp-notify")


def hurry(gate: Gate) -> None:
    """Have the gate wait for a moment only from now on: what came before had all the time."""
    vars(vars(gate)["_line"])["_grace"] = 0.05


def leased(setting: Setting, gate: Gate) -> None:
    """Give the gate a lease that does not lapse on any machine: from a clock that runs ahead."""
    ahead = time.monotonic_ns() + 3_600_000_000_000
    setting.far.say(protocol.Granted(ahead))
    wait_until(lambda: cast("int", vars(vars(gate)["_line"])["lease_until"]) > ahead)


def wait_for(probe: Callable[[], list[protocol.Renew]]) -> list[protocol.Renew]:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        found = probe()
        if found:
            return found
    raise AssertionError("it never happened")


def wait_until(probe: Callable[[], bool]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not probe():
        assert time.monotonic() < deadline, "it never happened"
