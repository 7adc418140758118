"""A policy as a gate applies it: strict or not, for the record only or not, and what it has said.

A judge lives as long as its policy is in force in a session.  It records nothing and asks
nobody: it says what an attempt comes to, and whether a person or the disk is to be waited for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import msgspec

from safeclaw.daemon import protocol
from safeclaw.policies.model import (
    Attempt,
    Decision,
    OtherTarget,
    ProgramTarget,
    Verdict,
    printable,
    target_fields,
)
from safeclaw.sandbox.gate import HELD_BACK

_MEMO_MAX, _PERMITTED_MAX = 32768, 256
#: How many bytes of records are remembered: an agent chooses how long its paths are.
_MEMO_BYTES_MAX = 16 * 1024 * 1024
#: Attempts whose encoding is longer are not remembered (programs with huge argument lists).
_MEMO_TAIL_MAX = 8192
#: How long a target may be in a record, in bytes of JSON.  A whole record has twice as much
#: (``journal.record.MAX_LINE``), for what is sealed is longer than what it stands for.
_TARGET_MAX = 4 * 1024 * 1024


class Evaluator(Protocol):
    """A compiled policy, as far as a gate needs it."""

    @property
    def asks(self) -> bool:
        """Whether some rule leaves its decision to a person."""
        ...

    def evaluate(self, attempt: Attempt) -> Verdict:
        """Return the verdict that the policy gives."""
        ...

    def shut(self, places: tuple[str, ...]) -> Evaluator:
        """Return the same policy with these places out of its reach."""
        ...

    def depends_on_state(self, attempt: Attempt) -> bool:
        """Whether the verdict needs the broker."""
        ...

    def refused_variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        """Return the names for which no program is started with this environment."""
        ...


class Known:
    """What is the same each time an attempt is made: its verdict and its record."""

    __slots__ = ("answer", "asks", "shown", "tail", "verdict", "waits")

    def __init__(
        self,
        tail: bytes,
        verdict: Verdict,
        answer: Verdict,
        *,
        waits: bool,
        asks: bool = False,
    ) -> None:
        self.tail = tail
        self.verdict = verdict
        self.answer = answer
        self.waits = waits
        self.asks = asks
        self.shown = verdict.decision is Decision.ALLOW


def recordable(attempt: Attempt, fields: dict[str, object]) -> Attempt:
    """Return the attempt as it can be recorded; of all, only a program's may be too long.

    ``fields`` are those of its target.
    """
    target = attempt.target
    if not isinstance(target, ProgramTarget):
        return attempt
    words = (*target.argv, *target.variables)
    size = sum(map(len, words))
    # a character is up to 4 bytes, each of which up to 5 (an escape, whose backslash is another)
    if 20 * size + 3 * len(words) < _TARGET_MAX:
        return attempt
    if len(msgspec.json.encode(fields)) <= _TARGET_MAX:
        return attempt
    what = f"{target.program} with {len(words)} words of {size} characters"
    return Attempt(attempt.action, OtherTarget(what))


class Judge:
    """See the module.

    INVARIANT: what a judge remembers is its own word, whatever comes into force meanwhile.
    """

    def __init__(self, policy: Evaluator, *, strict: bool = False, observe: bool = False) -> None:
        #: The judge that decided by this policy before places were shut, itself where none was.
        self.first = self
        self._policy = policy
        self._strict = strict
        self._observe = observe
        self._known: dict[tuple[Attempt, str, str], Known] = {}
        self._known_bytes = 0
        #: What was asked without a record; each exec asks for its loader.
        self._permitted: dict[Attempt, bool] = {}
        #: By attempt, program, and who enforces: what is known of it, or None.
        self.recall = self._known.get

    def decide(self, attempt: Attempt, exe: str, enforced_by: str) -> Known:
        """Return what an attempt comes to that is not recalled."""
        verdict = self._policy.evaluate(attempt)
        answer = self._observed(verdict)
        asks = enforced_by != "absent" and answer is verdict and self._may_ask(attempt)
        if enforced_by == HELD_BACK:
            asks = False
            answer = verdict = Verdict(Decision.DENY, "protected", "not the session's own")
        fields = target_fields(attempt.target)
        recorded = recordable(attempt, fields)
        if recorded is not attempt:
            fields = target_fields(recorded.target)
            # SAFETY: what no record can hold is not done, whoever says yes or only observes.
            attempt, asks = recorded, False
            answer = verdict = Verdict(Decision.DENY, "protected", "too long to be recorded")
        # A name that is not there stays not there, whoever is only observed.
        if answer is verdict or enforced_by in ("absent", "view"):
            enforced_by_whom = enforced_by
        else:
            enforced_by_whom = "observe"
        tail = protocol.decided_tail(
            attempt, verdict, exe=printable(exe), enforced_by=enforced_by_whom, target=fields
        )
        known = Known(tail, verdict, answer, waits=self._strict, asks=asks)
        # Names that do not exist (a walk along PATH) are recorded, but no news to a person.
        known.shown = known.shown or enforced_by == "absent"
        if len(tail) <= _MEMO_TAIL_MAX:
            self._known_bytes += len(tail)
            if len(self._known) >= _MEMO_MAX or self._known_bytes > _MEMO_BYTES_MAX:
                self._known.clear()
                self._known_bytes = len(tail)
            self._known[(attempt, exe, enforced_by)] = known
        return known

    def may_wait(self, attempt: Attempt) -> bool:
        """Whether the verdict, or its record, has to be waited for."""
        return self._strict or self._may_ask(attempt)

    def _may_ask(self, attempt: Attempt) -> bool:
        policy = self._policy
        return policy.asks and not self._observe and policy.depends_on_state(attempt)

    def permits(self, attempt: Attempt) -> bool:
        """Whether the policy itself allows it, whatever observing lets through."""
        permitted = self._permitted.get(attempt)
        if permitted is None:
            permitted = self._policy.evaluate(attempt).decision is Decision.ALLOW
            if len(self._permitted) >= _PERMITTED_MAX:
                self._permitted.clear()
            self._permitted[attempt] = permitted
        return permitted

    def answer(self, attempt: Attempt) -> Verdict:
        """Return the verdict that is acted on, and remember nothing."""
        return self._observed(self._policy.evaluate(attempt))

    def shut(self, places: tuple[str, ...]) -> Judge:
        """Return the same judge with these places out of its policy's reach."""
        judge = Judge(self._policy.shut(places), strict=self._strict, observe=self._observe)
        judge.first = self.first
        return judge

    def variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        """Return the names for which the policy has no program started with this environment."""
        return self._policy.refused_variables(environment)

    def _observed(self, verdict: Verdict) -> Verdict:
        """Return the answer to a verdict: under observation a denial is let through.

        SAFETY: not what is protected: that is no rule's to give, so not observation's either.
        """
        if not self._observe or verdict.decision is Decision.ALLOW or verdict.rule == "protected":
            return verdict
        return Verdict(Decision.ALLOW, verdict.rule, f"observed only: {verdict.reason}")
