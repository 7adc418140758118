"""The supervisor's gate: judges every attempt under a lease, and hands over the record first.

A gate lives as long as its session and borrows the channel to the broker.  What
it promises:

* a verdict is returned only after its record has been given to the broker's socket;
* nothing is allowed on a lease that has lapsed: the attempt waits for the broker,
  at most the grace time, and is then denied;
* once the broker is lost nothing is allowed ever again, ``on_lost`` is called
  once (it kills the agent), and the records of what is still denied are kept;
* records are kept until the broker says that they are on disk (:attr:`Gate.unacknowledged`).
"""

from __future__ import annotations

import collections
import threading
import time
from collections.abc import Callable
from typing import Protocol

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.errors import BrokerError
from safeclaw.policies.model import (
    Attempt,
    Decision,
    Verdict,
    fingerprint,
    printable,
    target_fields,
)
from safeclaw.sandbox.gate import Handover

#: How long an attempt waits for a broker that does not answer, in seconds.
GRACE = 5.0
_RENEW_NS = protocol.LEASE_NS // 2
_MEMO_MAX = 32768
#: Attempts whose encoding is longer are not remembered (programs with huge argument lists).
_MEMO_TAIL_MAX = 8192
#: How many records may be without acknowledgement before an attempt waits.
_UNACKNOWLEDGED_MAX = 16384
#: How many denials after the loss are kept for the journal; the agent is being killed.
_KEPT_AFTER_LOSS_MAX = 4 * _UNACKNOWLEDGED_MAX
_PID_MAX = 0xFFFFFFFF


class Evaluator(Protocol):
    """A compiled policy, as far as a gate needs it."""

    def evaluate(self, attempt: Attempt) -> Verdict:
        """Return the verdict that the policy gives."""
        ...

    def depends_on_state(self, attempt: Attempt) -> bool:
        """Whether the verdict needs the broker."""
        ...


class _Known:
    """What is the same each time an attempt is made: its verdict and its record."""

    __slots__ = ("answer", "shown", "tail", "verdict", "waits")

    def __init__(self, tail: bytes, verdict: Verdict, answer: Verdict, *, waits: bool) -> None:
        self.tail = tail
        self.verdict = verdict
        self.answer = answer
        self.waits = waits
        self.shown = verdict.decision is Decision.ALLOW


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
    ) -> None:
        self._channel = channel
        self._policy = policy
        self._on_lost = on_lost
        self._on_denied = on_denied
        self._on_started = on_started
        self._on_limit = on_limit
        self._strict = strict
        self._observe = observe
        self._grace = grace
        # Guards the order of numbers on the wire; never taken by the reader.
        self._sending = threading.Lock()
        # Guards what the reader changes.
        self._answered = threading.Condition()
        self._number = 0
        self._acknowledged = 0
        self._unacknowledged: collections.deque[bytes] = collections.deque()
        self._known: dict[tuple[Attempt, str, str], _Known] = {}
        # Both are 0 until the broker first answers: nothing is allowed before.
        self._lease_until = 0
        self._renew_at = 0
        self._lost: str | None = None
        self._silent = False
        self._ended = False
        self._reader: threading.Thread | None = None
        self.denials = 0

    # ---- the hot path

    def judge(self, attempt: Attempt, *, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Decide and record one attempt; never raises for a lost broker, but denies."""
        begin = time.monotonic_ns()
        known = self._known.get((attempt, exe, enforced_by))
        if known is None:
            known = self._decide(attempt, exe, enforced_by)
        with self._sending:
            now = time.monotonic_ns()
            if now >= self._renew_at and not self._renew(now):
                return self._refuse(attempt, pid, exe, enforced_by)
            number = self._number + 1
            packet = protocol.decided_packet(known.tail, number, pid, now - begin)
            if not self._hand_over(number, packet):
                return self._refuse(attempt, pid, exe, enforced_by)
            if known.waits:
                self._ask_durable()
        if known.waits and not self._await_durable(number):
            return self._lost_verdict()
        if known.verdict.decision is not Decision.ALLOW:
            self._count_denial(attempt, known)
        return known.answer

    def repeatable(self, attempt: Attempt, *, exe: str, enforced_by: str) -> Handover | None:
        """Return the short way for an attempt that the lease allows; None where there is none.

        INVARIANT: a verdict that depends on nothing but the policy holds as long as the gate.
        """
        known = self._known.get((attempt, exe, enforced_by))
        if known is None or known.waits or known.verdict.decision is not Decision.ALLOW:
            return None
        tail, sending, kept = known.tail, self._sending, self._unacknowledged
        packed, clock, send = protocol.decided_packet, time.monotonic_ns, self._channel.try_send

        def handover(pid: int, begin: int) -> bool:
            with sending:
                now = clock()
                # renewing, waiting and losing are left to judge
                if now >= self._renew_at or len(kept) >= _UNACKNOWLEDGED_MAX:
                    return False
                number = self._number + 1
                packet = packed(tail, number, pid, now - begin)
                kept.append(packet)
                if send(packet):
                    self._number = number
                    return True
                kept.pop()
                return False

        return handover

    def _hand_over(self, number: int, packet: bytes) -> bool:
        """Send a numbered record; keep it until it is on disk.  ``_sending`` is held."""
        if self._lost is not None:
            return False
        if len(self._unacknowledged) >= _UNACKNOWLEDGED_MAX:
            self._ask_durable()
            if not self._await_durable(number - _UNACKNOWLEDGED_MAX // 2):
                return False
        # Kept before it is sent: what is sent and not kept could be lost with the broker.
        self._number = number
        self._unacknowledged.append(packet)
        try:
            self._channel.send(packet, self._grace)
        except OSError as problem:
            # It did not leave, and nobody acts on it: the refusal takes its number.
            self._unacknowledged.pop()
            self._number = number - 1
            self._lose_channel(problem)
            return False
        return True

    def _decide(self, attempt: Attempt, exe: str, enforced_by: str) -> _Known:
        verdict = self._policy.evaluate(attempt)
        answer = self._observed(verdict)
        # A name that is not there stays not there, whoever is only observed.
        if answer is verdict or enforced_by in ("absent", "view"):
            enforced_by_whom = enforced_by
        else:
            enforced_by_whom = "observe"
        tail = protocol.decided_tail(
            attempt, verdict, exe=printable(exe), enforced_by=enforced_by_whom
        )
        waits = self._strict or self._policy.depends_on_state(attempt)
        known = _Known(tail, verdict, answer, waits=waits)
        # Names that do not exist (a walk along PATH) are recorded, but no news to a person.
        known.shown = known.shown or enforced_by == "absent"
        if len(tail) <= _MEMO_TAIL_MAX:
            if len(self._known) >= _MEMO_MAX:
                self._known.clear()
            self._known[(attempt, exe, enforced_by)] = known
        return known

    def _count_denial(self, attempt: Attempt, known: _Known) -> None:
        self.denials += 1
        if not known.shown:
            known.shown = True
            self._on_denied(attempt, known.verdict)

    # ---- the lease

    def _renew(self, now: int) -> bool:
        """Ask for more time; wait for it if the lease has lapsed.  ``_sending`` is held."""
        if self._lost is not None:
            return False
        try:
            self._channel.send(protocol.encode(protocol.Renew(now)), self._grace)
        except OSError as problem:
            self._lose_channel(problem)
            return False
        if now < self._lease_until:
            self._renew_at = self._lease_until
            return True
        if self._wait(lambda: time.monotonic_ns() < self._lease_until, self._grace):
            return True
        self._lose(f"the broker has not answered for {self._grace:g} s", silent=True)
        return False

    def _ask_durable(self) -> None:
        """Ask for an acknowledgement of what was sent.  ``_sending`` is held."""
        try:
            self._channel.send(protocol.encode(protocol.Flush()), self._grace)
        except OSError as problem:
            self._lose_channel(problem)

    def _await_durable(self, number: int) -> bool:
        """Wait until the record of that number is on disk; ask first."""
        if self._wait(lambda: self._acknowledged >= number, self._grace):
            return True
        self._lose(f"the broker has written nothing for {self._grace:g} s", silent=True)
        return False

    def _wait(self, until: Callable[[], bool], seconds: float) -> bool:
        """Wait for the reader; before it runs (no threads before fork), read here."""
        deadline = time.monotonic() + seconds
        if self._reader is None:
            while not until():
                left = deadline - time.monotonic()
                if left <= 0 or self._lost is not None:
                    return False
                try:
                    if not self._hear(self._channel.receive(left)):
                        return False
                except TimeoutError:
                    return False
            return True
        with self._answered:
            self._answered.wait_for(lambda: until() or self._lost is not None, seconds)
            return self._lost is None and until()

    # ---- what the broker says

    def _hear(self, data: bytes | None) -> bool:
        """Take in one message; False when it was the last."""
        if data is None:
            if not self._ended:
                self._lose("the broker has gone")
            return False
        try:
            message = protocol.decode_to_supervisor(data)
        except BrokerError as problem:
            self._lose(problem.message)
            return False
        match message:
            case protocol.Granted(at):
                with self._answered:
                    # Counted from when it was asked: an answer that lay in the socket
                    # while this process was stopped gives no new time.
                    self._lease_until = at + protocol.LEASE_NS
                    self._renew_at = at + _RENEW_NS
                    self._answered.notify_all()
            case protocol.Ack(number):
                with self._answered:
                    while self._acknowledged < number and self._unacknowledged:
                        self._unacknowledged.popleft()
                        self._acknowledged += 1
                    self._answered.notify_all()
            case protocol.Fault(reason):
                self._lose(f"the journal cannot be written: {reason}")
            case protocol.Refused(text):
                self._lose(f"the broker ends the session: {text}")
            case protocol.Ended():
                with self._answered:
                    self._ended = True
                    self._answered.notify_all()
            case protocol.Lease():
                self._lose("the broker sent a lease out of turn")
        return True

    def _read(self) -> None:
        try:
            while self._hear(self._channel.receive()):
                pass
        except (OSError, BrokerError) as problem:
            if not self._ended:
                self._lose(f"the broker has gone ({problem})")

    # ---- loss

    @property
    def lost(self) -> str | None:
        """Why nothing is allowed any more; None while all is well."""
        return self._lost

    @property
    def silent(self) -> bool:
        """Whether the broker was lost because it did not answer: it may be stopped."""
        return self._silent

    def _lose(self, reason: str, *, silent: bool = False) -> None:
        with self._answered:
            if self._lost is not None:
                return
            self._lost = reason
            self._silent = silent
            # SAFETY: the clock alone refuses every later attempt, whatever thread makes it.
            self._lease_until = 0
            self._renew_at = 0
            self._answered.notify_all()
        self._on_lost(reason)

    def _lose_channel(self, problem: OSError) -> None:
        if isinstance(problem, TimeoutError):
            self._lose(f"the broker has taken no record for {self._grace:g} s", silent=True)
        else:
            self._lose("the broker has gone")

    def _lost_verdict(self) -> Verdict:
        return Verdict(Decision.DENY, "broker-lost", self._lost or "the broker is lost")

    def _refuse(self, attempt: Attempt, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Deny because there is no broker, and keep the record.  ``_sending`` is held."""
        verdict = self._lost_verdict()
        if len(self._unacknowledged) < _KEPT_AFTER_LOSS_MAX:
            tail = protocol.decided_tail(
                attempt, verdict, exe=printable(exe), enforced_by=enforced_by
            )
            self._number += 1
            self._unacknowledged.append(protocol.decided_packet(tail, self._number, pid, 0))
        self.denials += 1
        return verdict

    # ---- the rest of the sandbox's gate

    def permits(self, attempt: Attempt) -> bool:
        """Whether the policy itself allows it: no record, and whatever observing lets through."""
        return self._lost is None and self._policy.evaluate(attempt).decision is Decision.ALLOW

    def peek(self, attempt: Attempt) -> Verdict:
        """Decide without a record: for the second half of a two-sided attempt."""
        verdict = self._policy.evaluate(attempt)
        if self._lost is not None:
            return self._lost_verdict()
        return self._observed(verdict)

    def _observed(self, verdict: Verdict) -> Verdict:
        """Return the answer to a verdict: under observation a denial is let through.

        SAFETY: not what is protected: that is no rule's to give, so not observation's either.
        """
        if not self._observe or verdict.decision is Decision.ALLOW or verdict.rule == "protected":
            return verdict
        return Verdict(Decision.ALLOW, verdict.rule, f"observed only: {verdict.reason}")

    def violation(self, attempt: Attempt, *, pid: int, exe: str, reason: str) -> None:
        """Record that what happened is not what was approved."""
        with self._sending:
            number = self._number + 1
            message = protocol.Violated(
                number,
                pid,
                printable(exe),
                attempt.action,
                target_fields(attempt.target),
                fingerprint(attempt),
                printable(reason),
            )
            self._note(number, protocol.encode(message))
        self.denials += 1
        self._on_denied(attempt, Verdict(Decision.DENY, "violation", reason))

    def limit(self, name: str, reason: str) -> None:
        """Record that the session has come to the limit of that name, and tell the person."""
        with self._sending:
            number = self._number + 1
            self._note(number, protocol.encode(protocol.Limited(number, name, printable(reason))))
        self._on_limit(name, reason)

    def _note(self, number: int, packet: bytes) -> None:
        """Record what nobody waits for; without a broker, keep it.  ``_sending`` is held."""
        if self._lost is not None:
            self._number = number
            self._unacknowledged.append(packet)
        else:
            self._hand_over(number, packet)

    def started(self, walls: dict[str, object]) -> None:
        """Record the walls, and wait until that is on disk; start to listen to the broker.

        Raises:
            BrokerError: there is no broker that could record it.

        """
        self._reader = threading.Thread(target=self._read, name="broker-reader", daemon=True)
        self._reader.start()
        with self._sending:
            number = self._number + 1
            if self._hand_over(number, protocol.encode(protocol.Started(number, walls))):
                self._ask_durable()
                self._await_durable(number)
        if self._lost is not None:
            raise BrokerError(f"the session cannot be recorded: {self._lost}")
        if self._on_started is not None:
            self._on_started(walls)

    # ---- the end

    @property
    def unacknowledged(self) -> list[bytes]:
        """The records that may not be on disk, in order."""
        with self._answered:
            return list(self._unacknowledged)

    def end(self, reason: str, status: int | None) -> bool:
        """Record the session's end and wait until all is on disk; False when that failed."""
        with self._sending:
            if self._lost is not None:
                return False
            try:
                self._channel.send(protocol.encode(protocol.End(reason, status)), self._grace)
            except OSError as problem:
                self._lose_channel(problem)
                return False
            if self._wait(lambda: self._ended, self._grace):
                return True
        self._lose("the broker did not confirm the end of the session", silent=True)
        return False

    def join(self, timeout: float) -> None:
        """Wait until the broker has closed the channel."""
        if self._reader is not None:
            self._reader.join(timeout)
