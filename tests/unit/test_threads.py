"""A thread that meets what nobody foresaw ends in a denial and a word, never in silence."""

from __future__ import annotations

import os
import select
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.journal import files, journald
from safeclaw.daemon.journal.journald import Forwarder
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.daemon.ledger import Ledger
from safeclaw.daemon.line import Line
from safeclaw.daemon.pseudonyms import Veils
from safeclaw.errors import JournalFaultError
from safeclaw.policies.document import Resources
from safeclaw.policies.loader import load
from safeclaw.policies.model import Decision
from safeclaw.sandbox import caseless, dns
from safeclaw.sandbox.cgroup import Group
from safeclaw.sandbox.limits import Limits, Plan
from safeclaw.sandbox.names import Names, NameServer
from tests.brokers_end import POLICY, READ, Setting, judge, wait_until
from tests.journals import decision, write_chain


@pytest.fixture(name="setting")
def _setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


def broken(*_: object, **_named: object) -> NoReturn:
    raise ValueError("unforeseen")


def violated(setting: Setting) -> list[protocol.Violated]:
    return [one for one in setting.far.heard if isinstance(one, protocol.Violated)]


def test_the_commit_threads_defect_is_a_fault(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    woken, wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    ledger = Ledger(tmp_path / "journal", Keeping(), Veils(tmp_path / "keys"), wake)
    ledger.open()
    ledger.append(decision(1))
    with monkeypatch.context() as patched:
        patched.setattr(files, "sync", broken)
        ledger.commit(soon=True)
        poller = select.poll()
        poller.register(woken, select.POLLIN)
        assert poller.poll(60_000)
    with pytest.raises(JournalFaultError, match="unforeseen") as caught:
        ledger.settled()
    ledger.fail(caught.value)
    assert ledger.journal is None
    with pytest.raises(JournalFaultError):  # what follows would stand behind a hole
        ledger.append(decision(2))
    ledger.close()
    again = Ledger(tmp_path / "journal", Keeping(), Veils(tmp_path / "keys"), wake)
    again.open()
    again.close()
    assert verify(tmp_path / "journal").status is Status.INTACT
    os.close(woken)
    os.close(wake)


def test_a_supervisor_that_cannot_hear_the_broker_any_more_allows_nothing(
    setting: Setting,
) -> None:
    line = Line(setting.near, on_lost=lambda _: setting.lost_event.set(), on_message=broken)
    line.listen()
    setting.far.say(protocol.Asked(1, "a", 1.0))
    assert setting.lost_event.wait(60)
    assert line.lost is not None
    assert "unforeseen" in line.lost


def test_a_policy_for_which_no_thread_is_left_is_not_ignored(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = setting.gate(adopt=broken)
    gate.started({})
    assert judge(gate, READ).decision is Decision.ALLOW

    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    setting.far.say(protocol.Replace(load(POLICY, name="q.yaml")))
    assert setting.lost_event.wait(60)
    assert judge(gate, READ).decision is Decision.DENY


def test_limits_that_nobody_can_hold_any_more_end_the_session(
    tmp_path: Path, setting: Setting
) -> None:
    (tmp_path / "cpu.stat").write_text("usage_usec many\n")
    gate = setting.gate()
    gate.started({})
    killed = threading.Event()
    limits = Limits(Resources(cpu_time=1), Plan(), Group(str(tmp_path)))
    limits.watch(gate, killed.set)
    assert killed.wait(60)
    wait_until(lambda: [one.action for one in violated(setting)] == ["sandbox.defect"])


def test_a_session_is_ended_when_nobody_sees_any_more_what_is_mounted(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    look = caseless.Look("/")
    monkeypatch.setattr(caseless, "mounts", broken)
    gate = setting.gate()
    gate.started({})
    killed = threading.Event()
    look.watch(os.getpid(), (), gate, killed.set)
    assert killed.wait(60)
    wait_until(lambda: [one.action for one in violated(setting)] == ["sandbox.defect"])


def test_a_name_that_the_resolver_cannot_judge_is_a_violation(
    setting: Setting, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dns, "question", broken)
    gate = setting.gate()
    gate.started({})
    served = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    served.bind(("127.0.0.1", 0))
    NameServer([served], Names(), gate, 1).start()
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asker:
        asker.sendto(b"who", served.getsockname())
        wait_until(lambda: [one.action for one in violated(setting)] == ["sandbox.defect"])


def test_a_record_that_cannot_be_copied_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(journald, "message", broken)
    forwarder = Forwarder(write_chain(tmp_path, 1), "")
    forwarder.pump(0)
    assert "unforeseen" in (forwarder.problem or "")
    forwarder.close()
