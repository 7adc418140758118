"""A policy that takes long to read holds nobody up but who brings it."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from safeclaw.daemon import kept, protocol
from safeclaw.daemon.brought import Brought
from safeclaw.daemon.client import Client
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import loader
from safeclaw.policies.document import Parent, Policy
from safeclaw.policies.inherit import MAX_TOTAL
from safeclaw.policies.model import Decision
from tests.unit.daemon.brokers import READ, STRICT, Opened, hello

LONG = STRICT + b"description: long\n"


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    return tmp_path / "state"


def test_a_session_goes_on_while_anothers_policy_is_read(
    state: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    read = kept.policy

    def policy(state: str, name: str, text: bytes, parents: tuple[Parent, ...] = ()) -> Policy:
        if text == LONG:
            gate.read_bytes()  # until the test has written
        return read(state, name, text, parents)

    monkeypatch.setattr(kept, "policy", policy)  # the broker is forked from here
    session = Opened(state, STRICT)
    slow = Client.connect(state)
    slow.hello(hello(LONG))
    with gate.open("wb"):  # when this returns, the broker has begun to read
        # Each waits until it is on disk.
        verdicts = [session.judge(READ).decision for _ in range(20)]
    assert verdicts == [Decision.ALLOW] * 20
    assert slow.lease().policy.description == "long"
    slow.finish()
    session.close()


def test_what_cannot_be_read_is_refused_and_the_next_is_read(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = kept.policy

    def policy(state: str, name: str, text: bytes, parents: tuple[Parent, ...] = ()) -> Policy:
        if text == LONG:
            raise RecursionError
        return read(state, name, text, parents)

    monkeypatch.setattr(kept, "policy", policy)
    first = Opened(state)
    for text, said in ((LONG, "makes no sense"), (b"rules: 1\n", "p.yaml:1")):
        wrong = Client.connect(state)
        wrong.hello(hello(text))
        with pytest.raises(BrokerError, match=said):
            wrong.lease()
        wrong.finish()
    second = Opened(state, STRICT)
    assert second.judge(READ).decision is Decision.ALLOW
    second.close()
    first.close()


def test_users_take_turns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go, done = threading.Event(), threading.Event(), threading.Semaphore(0)
    order: list[str] = []

    def policy(state: str, name: str, text: bytes, parents: tuple[Parent, ...] = ()) -> Policy:
        order.append(name)
        begun.set()
        assert go.wait(60)
        raise PolicyError(name)

    monkeypatch.setattr(kept, "policy", policy)
    brought = Brought(tmp_path, done.release)
    names = [("1", 1), ("1", 2), ("1", 3), ("2", 1), ("3", 1), ("2", 2)]
    for uid, number in names:
        session = cast("Session", SimpleNamespace(uid=int(uid)))
        called = f"{uid}-{number}"
        brought.read(
            session, protocol.Hello(protocol.VERSION, "a", ("a",), "/w", called, b"", False)
        )
        assert begun.wait(60)
    go.set()
    for _ in names:
        assert done.acquire(timeout=60)
    assert order == ["1-1", "1-2", "2-1", "3-1", "1-3", "2-2"]
    assert [str(outcome) for _, _, outcome in brought.done()] == order


def test_a_policy_is_bounded_with_all_that_it_extends() -> None:
    own = b'version: "1.0"\nextends: [a, b, c, d, e]\n'
    filler = b'version: "1.0"\nrules: [{action: file.read, path: x, effect: allow}]\n# '
    base = filler + b"x" * (MAX_TOTAL // 5 - len(filler))
    parents = [Parent("p.yaml", ref, f"/{ref}.yaml", base) for ref in "abcde"]
    with pytest.raises(PolicyError, match="with all that it extends it is"):
        loader.load(own, name="p.yaml", parents=tuple(parents))
    own = own.replace(b", e", b"")
    assert loader.load(own, name="p.yaml", parents=tuple(parents[:4])).rules
