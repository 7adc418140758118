"""The supervisor's gate: judges every attempt under a lease, and hands over the record first.

A gate lives as long as its session; its :class:`~safeclaw.daemon.line.Line` is the way
to the broker.  What it promises:

* a verdict is returned only after its record has been given to the broker's socket;
* nothing is allowed on a lease that has lapsed: the attempt waits for the broker,
  at most the grace time, and is then denied;
* what a rule leaves to a person waits for the broker's answer;
* once the broker is lost nothing is allowed ever again, ``on_lost`` is called
  once (it kills the agent), and the records of what is still denied are kept;
* records are kept until the broker says that they are on disk (:attr:`Gate.unacknowledged`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Protocol

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.errands import Errands
from safeclaw.daemon.judge import Evaluator, Judge, Known, recordable
from safeclaw.daemon.line import GRACE, LONG, UNACKNOWLEDGED_MAX, Line, Reconnect
from safeclaw.errors import BrokerError
from safeclaw.policies.document import Policy
from safeclaw.policies.model import (
    Attempt,
    Decision,
    Verdict,
    fingerprint,
    printable,
    target_fields,
)
from safeclaw.sandbox.gate import Handover


class Adoption(Protocol):
    """Makes ready what the broker sends instead of the policy in force."""

    def __call__(self, policy: Policy) -> tuple[Evaluator, bool, bool]:
        """Return the compiled policy, whether it is strict, and whether it only observes."""
        ...


class Gate:
    """Implements :class:`safeclaw.sandbox.gate.Gate` on a channel to the broker."""

    def __init__(
        self,
        channel: Channel,
        policy: Evaluator,
        *,
        on_lost: Callable[[str], None],
        on_denied: Callable[[Attempt, Verdict], None],
        strict: bool = False,
        observe: bool = False,
        grace: float = GRACE,
        on_started: Callable[[dict[str, object]], None] | None = None,
        on_limit: Callable[[str, str], None] = lambda _name, _reason: None,
        on_shut: Callable[[tuple[str, ...]], None] = lambda _places: None,
        on_asked: Callable[[protocol.Asked, Attempt], None] | None = None,
        on_killed: Callable[[str], None] | None = None,
        adopt: Adoption | None = None,
        adopted: str = "",
        on_adopted: Callable[[Policy], None] = lambda _policy: None,
        reconnect: Reconnect | None = None,
    ) -> None:
        self._judge = Judge(policy, strict=strict, observe=observe)
        self._on_denied = on_denied
        self._on_started = on_started
        self._on_limit = on_limit
        self._on_shut = on_shut
        self._on_asked = on_asked
        self._on_killed = on_killed
        self._adopt = adopt
        self._adopted = adopted
        self._on_adopted = on_adopted
        self._adoptions = Errands("adoption")
        self._asking: dict[int, Attempt] = {}
        self._line = Line(
            channel,
            on_lost=on_lost,
            on_message=self._heard,
            grace=grace,
            reconnect=reconnect,
        )
        self.denials = 0

    # ---- the hot path

    def judge(self, attempt: Attempt, *, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Decide and record one attempt; never raises for a lost broker, but denies."""
        begin = time.monotonic_ns()
        line = self._line
        answered, asker = None, None
        while True:
            judge = self._judge
            known = judge.recall((attempt, exe, enforced_by))
            if known is None:
                known = judge.decide(attempt, exe, enforced_by)
            if known.asks:
                # where nothing but a place was shut meanwhile, the answer is still to this
                if answered is None or asker is not judge.first:
                    answered, asker = self._ask(attempt, pid, exe, enforced_by, known), judge.first
                known = answered
            if len(known.tail) > LONG:
                line.await_room(len(known.tail))
            with line.sending:
                # INVARIANT: the number of a record stands behind the adoption of its policy.
                if judge is not self._judge:
                    continue
                now = time.monotonic_ns()
                if now < line.renew_at or line.renew(now):
                    number = line.number + 1
                    packet = protocol.decided_packet(known.tail, number, pid, now - begin)
                    if line.hand_over(number, packet):
                        if known.waits:
                            line.ask_durable()
                        break
                if line.killed is not None or not line.suspended:
                    return self._refuse(attempt, pid, exe, enforced_by)
            answered = None  # another broker may not know of it
            if not line.await_resumed():
                with line.sending:
                    return self._refuse(attempt, pid, exe, enforced_by)
        if known.waits and not line.await_durable(number):
            return self._no()
        if known.verdict.decision is not Decision.ALLOW:
            self._count_denial(attempt, known)
        return known.answer

    def may_wait(self, attempt: Attempt) -> bool:
        """Whether the verdict, or its record, has to be waited for."""
        return self._judge.may_wait(attempt)

    def repeatable(self, attempt: Attempt, *, exe: str, enforced_by: str) -> Handover | None:
        """Return the short way for an attempt that the lease allows; None where there is none.

        INVARIANT: a verdict that depends on nothing but the policy holds as long as the policy.
        """
        line, judge = self._line, self._judge
        known = judge.recall((attempt, exe, enforced_by))
        if known is None or known.waits or known.verdict.decision is not Decision.ALLOW:
            return None
        tail, sending, kept = known.tail, line.sending, line.unacknowledged
        packed, clock = protocol.decided_packet, time.monotonic_ns

        def handover(pid: int, begin: int) -> bool:
            with sending:
                now = clock()
                # renewing, waiting, losing and another policy are left to judge
                if (
                    now >= line.renew_at
                    or len(kept) >= UNACKNOWLEDGED_MAX
                    or judge is not self._judge
                ):
                    return False
                number = line.number + 1
                packet = packed(tail, number, pid, now - begin)
                kept.append(packet)
                if line.channel.try_send(packet):
                    line.number = number
                    return True
                kept.pop()
                return False

        return handover

    def _ask(self, attempt: Attempt, pid: int, exe: str, enforced_by: str, known: Known) -> Known:
        """Have a person decide; what comes back is good for this one attempt."""
        rule, reason = known.verdict.rule, known.verdict.reason

        def message(ticket: int) -> protocol.Ask:
            self._asking[ticket] = attempt
            return protocol.Ask(
                ticket,
                pid,
                printable(exe),
                attempt.action,
                target_fields(attempt.target),
                fingerprint(attempt),
                rule,
                reason,
            )

        answer = self._line.ask(message)
        # It may be that another policy is to decide: then that one has come before it.
        self._adoptions.settle()
        if answer is None:
            return Known(known.tail, known.verdict, known.answer, waits=False)
        self._asking.pop(answer.ticket, None)
        verdict = Verdict(answer.decision, rule, answer.reason)
        tail = protocol.decided_tail(attempt, verdict, exe=printable(exe), enforced_by=enforced_by)
        return Known(tail, verdict, verdict, waits=True)

    def _count_denial(self, attempt: Attempt, known: Known) -> None:
        self.denials += 1
        if not known.shown:
            known.shown = True
            self._on_denied(attempt, known.verdict)

    # ---- what the broker says

    def _heard(self, message: protocol.ToSupervisor) -> None:
        match message:
            case protocol.Asked(ticket):
                attempt = self._asking.get(ticket)
                if self._on_asked is not None and attempt is not None:
                    self._on_asked(message, attempt)
            case protocol.Replace(policy):
                # INVARIANT: not by who listens: that takes ``sending``, and who holds it may
                # wait for what the broker says next.
                self._adoptions.put(lambda: self._replace(policy))
            case protocol.Lease(policy=policy):
                # the broker is back, perhaps with another policy than this session's
                self._adoptions.put(lambda: self._go_on_under(policy))
                self._adoptions.settle()
            case protocol.Kill(reason):
                if self._on_killed is not None:
                    self._on_killed(reason)
            case _:
                pass

    def _go_on_under(self, policy: Policy) -> None:
        if policy.sha256 != self._adopted:
            self._replace(policy)

    def _replace(self, policy: Policy) -> None:
        """Decide by another policy from the next number on."""
        if self._adopt is None:
            return
        line = self._line
        try:
            compiled, strict, observe = self._adopt(policy)
            with line.sending:
                self._judge = Judge(compiled, strict=strict, observe=observe)
                self._adopted = policy.sha256
                message = protocol.Adopted(line.number + 1, policy.sha256)
                line.keep(protocol.encode(message))
        except Exception as problem:
            # INVARIANT: the broker counts on it; what cannot be adopted must not be ignored.
            line.lose(f"the new policy cannot be adopted: {problem}")
            return
        self._on_adopted(policy)

    def shut(self, places: tuple[str, ...]) -> None:
        """Allow nothing in these places any more: names there are without regard to case."""

        def work() -> None:
            with self._line.sending:
                self._judge = self._judge.shut(places)

        self._adoptions.put(work)
        self._adoptions.settle()
        self._on_shut(places)

    # ---- what is refused without a policy

    @property
    def lost(self) -> str | None:
        """Why nothing is allowed any more; None while all is well."""
        return self._line.lost

    @property
    def silent(self) -> bool:
        """Whether the broker was lost because it did not answer: it may be stopped."""
        return self._line.silent

    def _no(self) -> Verdict:
        if self._line.killed is not None:
            return Verdict(Decision.DENY, "kill-switch", self._line.killed)
        return Verdict(Decision.DENY, "broker-lost", self._line.lost or "the broker is lost")

    def _refuse(self, attempt: Attempt, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Deny whatever the policy says, and record that.  ``sending`` is held."""
        verdict = self._no()
        attempt = recordable(attempt, target_fields(attempt.target))
        tail = protocol.decided_tail(attempt, verdict, exe=printable(exe), enforced_by=enforced_by)
        self._line.keep(protocol.decided_packet(tail, self._line.number + 1, pid, 0))
        self.denials += 1
        return verdict

    # ---- the rest of the sandbox's gate

    def permits(self, attempt: Attempt) -> bool:
        """Whether the policy itself allows it: no record, and whatever observing lets through."""
        return self.lost is None and self._judge.permits(attempt)

    def stands(self) -> bool:
        """Whether the lease holds; it is renewed for this, at most the grace time long."""
        line = self._line
        while True:
            with line.sending:
                now = time.monotonic_ns()
                if now < line.renew_at or line.renew(now):
                    return True
                if line.killed is not None or not line.suspended:
                    return False
            if not line.await_resumed():
                return False

    def variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        """Return the names for which the policy has no program started with this environment."""
        return self._judge.variables(environment)

    def peek(self, attempt: Attempt) -> Verdict:
        """Decide without a record: for the second half of a two-sided attempt."""
        answer = self._judge.answer(attempt)
        if self._line.lost is not None or self._line.killed is not None:
            return self._no()
        return answer

    def violation(
        self,
        attempt: Attempt,
        *,
        pid: int,
        exe: str,
        reason: str,
        stop: Callable[[], None] | None = None,
    ) -> None:
        """Record that what happened is not what was approved, ``stop`` it, and tell the person."""
        try:
            with self._line.sending:
                message = protocol.Violated(
                    self._line.number + 1,
                    pid,
                    printable(exe),
                    attempt.action,
                    target_fields(attempt.target),
                    fingerprint(attempt),
                    printable(reason),
                )
                self._line.keep(protocol.encode(message))
        finally:
            if stop is not None:
                stop()
        self.denials += 1
        self._on_denied(attempt, Verdict(Decision.DENY, "violation", reason))

    def limit(self, name: str, reason: str, stop: Callable[[], None] | None = None) -> None:
        """Record that the session has come to the limit of that name, and tell the person."""
        with self._line.sending:
            message = protocol.Limited(self._line.number + 1, name, printable(reason))
            self._line.keep(protocol.encode(message))
        # SAFETY: before anybody is told: an agent can stop the terminal that it shares.
        if stop is not None:
            stop()
        self._on_limit(name, reason)

    def started(self, walls: dict[str, object]) -> None:
        """Record the walls, and wait until that is on disk; start to listen to the broker.

        Raises:
            BrokerError: there is no broker that could record it.

        """
        line = self._line
        line.listen()
        with line.sending:
            number = line.number + 1
            line.keep(protocol.encode(protocol.Started(number, walls)))
            line.ask_durable()
        line.await_durable(number)
        if line.lost is not None:
            raise BrokerError(
                f"the session cannot be recorded: {line.lost}",
                hint="without a record nothing runs; safeclaw status says how the broker is",
            )
        if line.killed is not None:
            raise BrokerError(
                f"the session is not started: {line.killed}",
                hint="safeclaw status says who is down",
            )
        if self._on_started is not None:
            self._on_started(walls)

    # ---- the end

    @property
    def unacknowledged(self) -> list[bytes]:
        """The records that may not be on disk, in order."""
        return self._line.pending()

    def end(self, reason: str, status: int | None) -> bool:
        """Record the session's end and wait until all is on disk; False when that failed."""
        return self._line.end(protocol.encode(protocol.End(reason, status)))

    def join(self, timeout: float) -> None:
        """Wait until the broker has closed the channel."""
        self._line.join(timeout)
