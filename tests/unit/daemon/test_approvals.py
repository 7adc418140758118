"""Questions and grants: asked once, bound to what was shown, never wider."""

from __future__ import annotations

import msgspec
import pytest

from safeclaw.daemon.approvals import Approvals, Asker, Grant, Question, Scope, new_name

ASKER = Asker("session-1", 1000, "demo", "a" * 64)
OTHERS = [
    Asker("session-2", 1000, "demo", "a" * 64),
    Asker("session-1", 1001, "demo", "a" * 64),
    Asker("session-1", 1000, "else", "a" * 64),
    Asker("session-1", 1000, "demo", "b" * 64),
]


def question(
    approvals: Approvals, asker: Asker = ASKER, mark: str = "f", until: float = 300.0
) -> Question:
    return Question(
        id=new_name(approvals), asker=asker, action="file.write", target={"path": "/x"},
        fingerprint=mark, rule="demo:1", reason="", exe="/bin/sh", pid=7, asked=0.0, until=until,
    )  # fmt: skip


def grant(asked: Question, scope: Scope, until: float | None = None) -> Grant:
    return Grant(asked.id, scope, asked.asker, asked.fingerprint, until, 0)


def test_the_same_question_is_asked_once_and_answers_every_ticket() -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    same = approvals.same(ASKER, "f")
    assert same == asked
    approvals.ask(asked, 2)
    assert len(approvals.pending) == 1
    assert approvals.waiting(asked) == 2
    assert approvals.settle(asked, None) == [1, 2]
    assert not approvals.pending


@pytest.mark.parametrize("other", OTHERS)
def test_nobody_elses_question_is_the_same(other: Asker) -> None:
    approvals = Approvals()
    approvals.ask(question(approvals), 1)
    assert approvals.same(other, "f") is None
    assert approvals.same(ASKER, "g") is None


def test_once_is_once() -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    approvals.settle(asked, grant(asked, Scope.ONCE))
    assert approvals.granted(ASKER, "f", 0.0) is None


@pytest.mark.parametrize("scope", [Scope.SESSION, Scope.TIME])
def test_a_grant_answers_the_same_attempt_and_no_other(scope: Scope) -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    approvals.settle(asked, grant(asked, scope, 100.0 if scope is Scope.TIME else None))
    assert approvals.granted(ASKER, "f", 99.0) is not None
    assert approvals.granted(ASKER, "g", 99.0) is None
    # For a time, another session of the same user and agent is covered; nobody else is.
    covered = [one for one in OTHERS if approvals.granted(one, "f", 99.0) is not None]
    expected = [OTHERS[0]] if scope is Scope.TIME else OTHERS[1:3]
    assert covered == expected


def test_a_grant_for_a_time_ends_with_it() -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    approvals.settle(asked, grant(asked, Scope.TIME, 100.0))
    assert approvals.granted(ASKER, "f", 100.0) is None
    assert approvals.granted(ASKER, "f", 50.0) is None, "it came back when the clock was set back"


def test_a_sessions_grants_end_with_it() -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    approvals.settle(asked, grant(asked, Scope.SESSION))
    approvals.forget_session("session-2")
    assert approvals.granted(ASKER, "f", 0.0) is not None
    approvals.forget_session("session-1")
    assert approvals.granted(ASKER, "f", 0.0) is None


def test_what_nobody_waits_for_is_no_question_any_more() -> None:
    approvals = Approvals()
    asked = question(approvals)
    approvals.ask(asked, 1)
    approvals.ask(asked, 2)
    assert approvals.withdraw("session-1", 1) == []
    assert approvals.withdraw("session-2", None) == []
    assert approvals.withdraw("session-1", 2) == [asked]
    assert approvals.find(asked.id) is None


def test_a_session_may_ask_only_so_much_at_once() -> None:
    approvals = Approvals()
    number = 0
    while not approvals.full(ASKER):
        approvals.ask(question(approvals, mark=str(number)), number)
        number += 1
    assert number == 64
    assert not approvals.full(msgspec.structs.replace(ASKER, session="session-2"))
    assert not approvals.full(ASKER, joining=True)
    while not approvals.full(ASKER, joining=True):
        approvals.ask(approvals.pending[0], number)
        number += 1
    assert number == 4096
    assert not approvals.full(msgspec.structs.replace(ASKER, session="session-2"), joining=True)


def test_a_user_may_ask_only_so_much_at_once_in_however_many_sessions() -> None:
    approvals = Approvals()
    asker, number = ASKER, 0
    while not approvals.full(asker):
        approvals.ask(question(approvals, asker, str(number)), number)
        number += 1
        asker = msgspec.structs.replace(ASKER, session=f"session-{number}")
    assert number == 256
    assert not approvals.full(msgspec.structs.replace(asker, uid=ASKER.uid + 1))


def test_no_answer_in_time_is_seen() -> None:
    approvals = Approvals()
    early, late = question(approvals, until=10.0), question(approvals, mark="g", until=20.0)
    approvals.ask(late, 1)
    approvals.ask(early, 2)
    assert approvals.next_expiry() == 10.0
    assert approvals.expired(9.9) == []
    assert approvals.expired(10.0) == [early]
