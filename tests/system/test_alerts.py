"""Alerts: what an operator's hook is told, against what really happened."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from safeclaw.policies.model import Attempt, FileTarget, fingerprint, target_fields
from tests.system.conftest import Person
from tests.system.system_broker import PATIENCE, Making, SystemBroker
from tests.system.watched import POLICY, curl, denied, making, samples

__all__ = ["making"]


class Hook:
    """A hook of the operator's: what it is told goes to a FIFO, on which the test waits."""

    def __init__(self, base: Path) -> None:
        self.fifo = base / "told"
        os.mkfifo(self.fifo)
        # both ends: neither the hook nor the test waits for the other to open it
        self._stream = os.fdopen(os.open(self.fifo, os.O_RDWR), "rb", buffering=0)
        self.program = base / "hook"
        self.program.write_text(f"#!/bin/sh\nexec cat >>{self.fifo}\n")
        self.program.chmod(0o755)

    def told(self) -> dict[str, Any]:
        """Wait for the next alert."""
        line = b""
        while not line.endswith(b"\n"):
            line += self._stream.read(1)
        return cast("dict[str, Any]", json.loads(line))

    def close(self) -> None:
        self._stream.close()


@pytest.fixture(name="hook")
def _hook(tmp_path: Path) -> Iterator[Hook]:
    hook = Hook(tmp_path)
    yield hook
    hook.close()


def violate(broker: SystemBroker, count: int) -> None:
    """Be a supervisor that reports deeds that were not what had been approved."""
    client = Client.at(broker.socket)
    command = ("true",)
    client.hello(protocol.Hello(protocol.VERSION, "odd", command, "/", "demo", POLICY.encode()))
    client.lease()
    attempt = Attempt("file.read", FileTarget("/srv/plan"))
    target = target_fields(attempt.target)
    for number in range(1, count + 1):
        message = protocol.Violated(
            number, 1, "/bin/true", "file.read", target, fingerprint(attempt), "another file"
        )
        client.channel.send(protocol.encode(message), PATIENCE)
    client.channel.send(protocol.encode(protocol.End("done", 0)), PATIENCE)
    client.finish()


def test_a_violation_is_an_alert_and_many_are_one(making: Making, hook: Hook) -> None:
    broker = making(alert_hook=[str(hook.program)])
    violate(broker, 3)
    told = hook.told()
    assert (told["alert"], told["reason"], told["agent"]) == ("violation", "another file", "odd")
    assert told["target"] == {"path": "/srv/plan"}
    assert told["chain"] == broker.records()[0]["chain"]
    alerts = broker.ask("status")["alerts"]
    assert (alerts["raised"], alerts["sent"], alerts["failed"]) == (3, 1, 0)
    assert samples(curl(broker)[1])["safeclaw_records_total,type=violation"] == 3


def test_many_denials_are_an_alert_and_few_are_none(
    making: Making, hook: Hook, person: Person
) -> None:
    broker = making(alert_hook=[str(hook.program)], alert_denials=8)
    denied(broker, person)
    assert broker.ask("status")["alerts"]["raised"] == 0
    denied(broker, person)
    told = hook.told()
    assert told["alert"] == "denials"
    assert told["denials"] >= 8


def test_a_journal_that_cannot_be_used_is_an_alert(making: Making, hook: Hook) -> None:
    broker = making(alert_hook=[str(hook.program)])
    broker.stop()
    (segment,) = (broker.state / "journal").glob("*.jsonl")
    segment.write_bytes(b'{"no": "record"}\n')
    broker.start()
    assert hook.told()["alert"] == "fault"
    done = broker.safeclaw("status")
    assert done.returncode == 1
    assert "FAULT, nothing is allowed" in done.stdout
    assert samples(curl(broker)[1])["safeclaw_fault"] == 1


@pytest.mark.parametrize(
    ("command", "why"),
    [(["/usr/bin/false"], "ended with status 1"), (["/nowhere/hook"], "No such file")],
)
def test_a_hook_that_fails_is_recorded_and_stops_nothing(
    making: Making, person: Person, command: list[str], why: str
) -> None:
    broker = making(alert_hook=command)
    violate(broker, 1)
    end = time.monotonic() + PATIENCE
    while not broker.ask("status")["alerts"]["failed"]:
        assert time.monotonic() < end
    (record,) = broker.records("--type", "fault")
    assert why in record["reason"]
    denied(broker, person)
    assert "hooks that failed: 1" in broker.safeclaw("status").stdout
    assert why in broker.stop()
