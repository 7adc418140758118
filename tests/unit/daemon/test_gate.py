"""The gate against a broker's end that the test plays, on a real socket."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence

import pytest

from safeclaw.daemon import protocol
from safeclaw.daemon.gate import Gate
from safeclaw.daemon.line import Line
from safeclaw.errors import BrokerError
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.document import Policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict
from tests.brokers_end import (
    POLICY,
    READ,
    SECRET,
    Setting,
    compiled,
    hurry,
    judge,
    leased,
    wait_for,
    wait_until,
)


@pytest.fixture(name="setting")
def _setting() -> Iterator[Setting]:
    setting = Setting()
    yield setting
    setting.close()


def test_decisions_are_numbered_and_handed_over_with_their_verdict(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({"layer": "test"})
    assert judge(gate, READ).decision is Decision.ALLOW
    assert judge(gate, SECRET).decision is Decision.DENY
    assert judge(gate, SECRET).decision is Decision.DENY
    assert gate.end("done", 0)
    heard = setting.far.decisions()
    assert [(m.number, m.decision, m.rule) for m in heard] == [
        (2, Decision.ALLOW, "p:1"),
        (3, Decision.DENY, "p:3"),
        (4, Decision.DENY, "p:3"),
    ]
    assert heard[0].pid == 7
    assert setting.denied == [SECRET], "a person is told once"
    assert gate.denials == 2
    assert gate.unacknowledged == []
    assert setting.lost == []


def test_records_are_kept_until_they_are_acknowledged(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    for _ in range(5):
        judge(gate, READ)
    assert len(gate.unacknowledged) == 5
    numbers = [protocol.decode_to_broker(packet) for packet in gate.unacknowledged]
    assert [m.number for m in numbers if isinstance(m, protocol.Decided)] == [2, 3, 4, 5, 6]


def test_nothing_is_allowed_when_the_broker_never_answers(setting: Setting) -> None:
    setting.far.grants = False
    gate = setting.gate(grace=0.05)
    verdict = judge(gate, READ)
    assert verdict.decision is Decision.DENY
    assert verdict.rule == "broker-lost"
    assert setting.lost == ["the broker has not answered for 0.05 s"]
    assert setting.far.decisions() == []
    assert len(gate.unacknowledged) == 1, "the refusal is kept for the journal"


def test_an_attempt_waits_for_a_broker_that_is_late(setting: Setting) -> None:
    setting.far.grants = False
    gate = setting.gate(grace=30.0)
    gate.started({})
    found: list[Verdict] = []
    waiting = threading.Thread(target=lambda: found.append(judge(gate, READ)))
    waiting.start()
    renew = wait_for(setting.far.renewals)
    assert found == []
    # From a clock that runs ahead, so that the answer is in time on any machine.
    setting.far.say(protocol.Granted(renew[0].at + 3_600_000_000_000))
    waiting.join()
    assert found[0].decision is Decision.ALLOW
    assert setting.lost == []


def test_an_answer_to_an_old_question_gives_no_new_time(setting: Setting) -> None:
    setting.far.grants = False
    gate = setting.gate()
    gate.started({})
    hurry(gate)
    setting.far.say(protocol.Granted(time.monotonic_ns() - protocol.LEASE_NS))
    assert judge(gate, READ).decision is Decision.DENY


def test_an_answer_that_comes_too_late_to_give_time_is_asked_for_again(setting: Setting) -> None:
    lost: list[str] = []
    line = Line(setting.near, on_lost=lost.append, on_message=lambda _: None, grace=30.0)
    with line.sending:
        # As when the answer has lain in the socket for longer than a lease lasts.
        assert line.renew(time.monotonic_ns() - 2 * protocol.LEASE_NS)
    assert [type(message) for message in setting.far.heard] == [protocol.Renew, protocol.Renew]
    assert lost == []


def test_the_end_of_the_broker_denies_everything_and_is_told_once(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    assert judge(gate, READ).decision is Decision.ALLOW
    setting.far.channel.close()
    assert setting.lost_event.wait(60)
    assert judge(gate, READ).decision is Decision.DENY
    assert judge(gate, READ).decision is Decision.DENY
    assert gate.peek(READ).decision is Decision.DENY
    assert len(setting.lost) == 1
    kept = [protocol.decode_to_broker(packet) for packet in gate.unacknowledged]
    assert [(m.number, m.decision) for m in kept if isinstance(m, protocol.Decided)] == [
        (2, Decision.ALLOW),
        (3, Decision.DENY),
        (4, Decision.DENY),
    ]
    assert not gate.end("done", 0)


@pytest.mark.parametrize(
    ("message", "word"),
    [
        (protocol.Fault("no space left"), "no space left"),
        (protocol.Refused("number 3 was used twice"), "used twice"),
    ],
)
def test_a_fault_or_a_refusal_ends_everything(
    setting: Setting, message: protocol.ToSupervisor, word: str
) -> None:
    gate = setting.gate()
    gate.started({})
    setting.far.say(message)
    assert setting.lost_event.wait(60)
    assert judge(gate, READ).decision is Decision.DENY
    assert word in setting.lost[0]


def test_strict_waits_for_the_disk(setting: Setting) -> None:
    gate = setting.gate(strict=True)
    gate.started({})
    leased(setting, gate)
    hurry(gate)
    setting.far.acknowledges = False
    assert judge(gate, READ).decision is Decision.DENY
    assert setting.lost == ["the broker has written nothing for 0.05 s"]


def test_strict_allows_what_is_on_disk(setting: Setting) -> None:
    gate = setting.gate(strict=True)
    gate.started({})
    assert judge(gate, READ).decision is Decision.ALLOW
    assert gate.unacknowledged == []


def test_a_session_that_cannot_be_recorded_does_not_start(setting: Setting) -> None:
    setting.far.acknowledges = False
    gate = setting.gate(grace=0.05)
    with pytest.raises(BrokerError, match="cannot be recorded"):
        gate.started({})


def test_observe_allows_and_records_the_denial(setting: Setting) -> None:
    gate = setting.gate(observe=True)
    gate.started({})
    assert judge(gate, SECRET).decision is Decision.ALLOW
    assert gate.end("done", 0)
    (message,) = setting.far.decisions()
    assert (message.decision, message.enforced_by) == (Decision.DENY, "observe")


def test_many_threads_use_every_number_once_and_in_order(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    threads = [
        threading.Thread(target=lambda: [judge(gate, READ) for _ in range(200)]) for _ in range(8)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert gate.end("done", 0)
    assert [m.number for m in setting.far.decisions()] == list(range(2, 1602))


def test_a_repeated_attempt_takes_its_number_among_the_judged(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    judge(gate, READ)
    again = gate.repeatable(READ, exe="/bin/a", enforced_by="seccomp-notify")
    assert again is not None
    assert again(8, time.monotonic_ns())
    judge(gate, SECRET)
    assert again(9, time.monotonic_ns())
    assert gate.end("done", 0)
    heard = setting.far.decisions()
    assert [(m.number, m.pid, m.decision) for m in heard] == [
        (2, 7, Decision.ALLOW),
        (3, 8, Decision.ALLOW),
        (4, 7, Decision.DENY),
        (5, 9, Decision.ALLOW),
    ]
    assert heard[1].fingerprint == heard[0].fingerprint


@pytest.mark.parametrize("strict", [False, True])
def test_what_is_denied_or_waits_is_judged_each_time(setting: Setting, strict: bool) -> None:
    gate = setting.gate(strict=strict)
    gate.started({})
    judge(gate, SECRET)
    judge(gate, READ)
    assert gate.repeatable(SECRET, exe="/bin/a", enforced_by="seccomp-notify") is None
    again = gate.repeatable(READ, exe="/bin/a", enforced_by="seccomp-notify")
    assert (again is None) == strict


def test_nothing_is_repeated_on_a_lease_that_lapsed_or_after_the_loss(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    judge(gate, READ)
    again = gate.repeatable(READ, exe="/bin/a", enforced_by="seccomp-notify")
    assert again is not None
    # Half of the lease's time is over at once: the next one has to ask for more.
    setting.far.say(protocol.Granted(time.monotonic_ns() - protocol.LEASE_NS))
    wait_until(lambda: not again(7, time.monotonic_ns()))
    kept = len(gate.unacknowledged)
    assert not again(7, time.monotonic_ns())
    assert len(gate.unacknowledged) == kept, "what was not repeated is not recorded"
    setting.far.channel.close()
    assert setting.lost_event.wait(60)
    assert not again(7, time.monotonic_ns())
    assert len(gate.unacknowledged) == kept


class Overtaken:
    """A policy that is replaced while it judges for the first time."""

    asks = False

    def __init__(self, replace: Callable[[], None]) -> None:
        self._policy = compiled()
        self._replace = replace
        self.judged = 0

    def evaluate(self, attempt: Attempt) -> Verdict:
        self.judged += 1
        if self.judged == 1:
            self._replace()
        return self._policy.evaluate(attempt)

    def depends_on_state(self, attempt: Attempt) -> bool:
        return self._policy.depends_on_state(attempt)

    def refused_variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        return self._policy.refused_variables(environment)

    def shut(self, places: tuple[str, ...]) -> CompiledPolicy:
        return self._policy.shut(places)


def test_an_attempt_judged_while_the_policy_is_replaced_is_judged_by_the_new_one(
    setting: Setting,
) -> None:
    narrow = load(POLICY.replace(b"src/**", b"doc/**"), name="n.yaml")
    adopted = threading.Event()

    def adopt(policy: Policy) -> tuple[CompiledPolicy, bool, bool]:
        return compile_policy(policy, Context("/w", "/home/u")), False, False

    def replace() -> None:
        setting.far.say(protocol.Replace(narrow))
        assert adopted.wait(30)

    old = Overtaken(replace)
    gate = Gate(
        setting.near,
        old,
        on_lost=setting.lost.append,
        on_denied=lambda attempt, verdict: None,
        adopt=adopt,
    )
    setting.far.on_adopted = adopted.set
    gate.started({})
    verdict = gate.judge(READ, pid=1, exe="/x", enforced_by="t")
    assert verdict.decision is Decision.DENY
    assert old.judged == 1
    gate.end("done", 0)
    (decided,) = setting.far.decisions()
    assert decided.decision is Decision.DENY


def test_a_place_that_is_shut_is_shut_for_what_was_allowed_before(setting: Setting) -> None:
    gate = setting.gate()
    gate.started({})
    assert judge(gate, READ).decision is Decision.ALLOW
    again = gate.repeatable(READ, exe="/bin/a", enforced_by="seccomp-notify")
    assert again is not None
    gate.shut(("/w",))
    assert not again(7, time.monotonic_ns())
    assert judge(gate, READ).rule == "protected"
    assert gate.end("done", 0)


@pytest.mark.parametrize("inside", [False, True])
def test_what_a_person_said_stands_when_a_place_is_shut_meanwhile(
    setting: Setting, inside: bool
) -> None:
    gate = setting.gate()
    gate.started({})
    found: list[Verdict] = []
    attempt = Attempt("file.write.create", FileTarget("/w/ask/a"))
    waiting = threading.Thread(target=lambda: found.append(judge(gate, attempt)))
    waiting.start()

    def asked() -> list[protocol.Ask]:
        return [message for message in setting.far.heard if isinstance(message, protocol.Ask)]

    wait_until(lambda: bool(asked()))
    gate.shut(("/w/ask",) if inside else ("/mnt/stick",))
    setting.far.say(protocol.Answer(asked()[0].ticket, Decision.ALLOW, "yes"))
    waiting.join(60)
    assert [one.decision for one in found] == [Decision.DENY if inside else Decision.ALLOW]
    assert gate.end("done", 0)
    assert len(asked()) == 1
