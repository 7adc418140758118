"""What the journal holds of a session that is to go on after its broker was lost."""

from __future__ import annotations

import collections
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.errors import BrokerError, JournalError
from safeclaw.policies.document import Effect, Policy

#: Returns the policy of a hash, or None when it is not known any more.
Known = Callable[[str], Policy | None]


class Past(msgspec.Struct):
    """What the journal holds of a session."""

    session: str
    recorded: int = 0
    decisions: int = 0
    denials: int = 0
    ended: bool = False
    #: The hash of the policy that it was held to in the end.
    policy: str = ""
    #: How many attempts a person has allowed that are not recorded, by fingerprint as recorded.
    answered: collections.Counter[str] = msgspec.field(default_factory=collections.Counter[str])


def asking(policy: Policy) -> frozenset[str]:
    """Return the rules that put an attempt before a person."""
    return frozenset(rule.id for rule in policy.rules if rule.effect is Effect.ASK)


class _Asking:
    """Which records are of attempts that a person was asked about."""

    def __init__(self, known: Known) -> None:
        self._known = known
        self._rules: dict[str, frozenset[str]] = {}

    def __contains__(self, record: Record) -> bool:
        if record.policy is None or record.rule is None:
            return False
        # a rule's number means something in its own policy only
        sha256 = record.policy.sha256
        if sha256 not in self._rules:
            policy = self._known(sha256)
            self._rules[sha256] = asking(policy) if policy is not None else frozenset()
        return record.rule in self._rules[sha256]


def _take_in(past: Past, record: Record, uid: int, agent: str, asked: _Asking) -> bool:
    """Add a record to what was; return whether it says whose it is.  BrokerError."""
    if record.attempt is not None:
        past.recorded = max(past.recorded, record.attempt)
    if record.type is RecordType.SESSION_END:
        past.ended = True
    if record.subject is not None and record.subject.uid not in (None, uid):
        raise BrokerError("the session is another user's", hint="start the agent again")
    if record.agent not in (None, agent):
        raise BrokerError("the session is another agent's", hint="start the agent again")
    if record.type is RecordType.DECISION:
        past.decisions += 1
        past.denials += record.decision != "allow"
    if record.type is RecordType.APPROVAL:
        past.answered[record.fingerprint or ""] += _allowed(record)
    elif record.decision == "allow" and record in asked:
        past.answered[record.fingerprint or ""] -= 1
    return record.subject is not None and record.subject.uid == uid


def _allowed(record: Record) -> int:
    """Return how many attempts a record of an approval allows."""
    detail = record.detail or {}
    tickets = detail.get("tickets")
    match detail.get("event"):
        case "approved":
            return tickets if isinstance(tickets, int) else 0
        case "used":
            return 1
        case _:
            return 0


def read_past(journal: Path, ident: str, *, uid: int, agent: str, known: Known) -> Past:
    """Read it.  BrokerError when there is nothing, or when it is another's.

    ``known`` returns the policies that the session was, or is to be, held to.
    """
    from safeclaw.daemon.journal.reader import session_segments

    past, whose = Past(ident), False
    asked = _Asking(known)
    try:
        for records in session_segments(journal, ident):
            latest = next((one.policy.sha256 for one in reversed(records) if one.policy), "")
            past.policy = past.policy or latest
            for record in records:
                whose = _take_in(past, record, uid, agent, asked) or whose
            if any(record.type is RecordType.SESSION_START for record in records):
                break  # what is older is not its own
    except JournalError as problem:
        raise BrokerError(problem.message, hint=problem.hint) from problem
    if not whose:
        raise BrokerError("no such session was left open", hint="start the agent again")
    return past
