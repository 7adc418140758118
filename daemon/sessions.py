"""The broker's side of one session: its place in the numbering, and its records.

A session belongs to the broker and lives as long as its channel.  It turns what
a supervisor says into journal entries; it writes nothing itself.
"""

from __future__ import annotations

import collections
import hashlib
import os
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.journal.record import Entry, PolicyRef, RecordType, Template
from safeclaw.errors import BrokerError, JournalError
from safeclaw.policies.document import Assurance, Policy
from safeclaw.policies.model import Decision

#: A session that does not wait is told at least this often how far its records are.
_ACKNOWLEDGE_EVERY = 1024
_TAILS_MAX = 8192
_TAIL_MAX = 8192


class Session:
    """One supervisor and its agent."""

    def __init__(self, channel: Channel, *, pid: int, uid: int) -> None:
        self.channel = channel
        self.pid = pid
        self.uid = uid
        self.id: str | None = None
        self.agent: str | None = None
        self.command: tuple[str, ...] = ()
        self.workspace = ""
        self.observe = False
        self.strict = False
        self._policy: PolicyRef | None = None
        #: The last number taken; what the journal held already when it was resumed.
        self.number = 0
        self.recorded = 0
        #: (journal sequence number, attempt number) pairs on their way to the disk.
        self.marks: collections.deque[tuple[int, int]] = collections.deque()
        self.marked = 0
        self.durable = 0
        self.acknowledged = 0
        self.flush = False
        #: Its session_end is appended; its confirmation is due; all is said.
        self.ended = False
        self.ending = False
        self.concluded = False
        #: Its supervisor has closed its end.
        self.deaf = False
        self._decisions = 0
        self._denials = 0
        self._tails: dict[bytes, tuple[Template, bool]] = {}

    def open(self, hello: protocol.Hello, policy: Policy) -> None:
        """Begin, under a policy."""
        self.id = os.urandom(8).hex()
        self.agent = hello.agent
        self.command = hello.command
        self.workspace = hello.workspace
        self.observe = hello.observe
        self.strict = policy.assurance is Assurance.STRICT
        self._policy = PolicyRef(policy.name, policy.sha256, policy.version)

    def resume(self, ident: str, journal: Path) -> None:
        """Go on with a session whose broker was lost, after what the journal holds of it."""
        from safeclaw.daemon.journal.reader import read

        self.id = ident
        try:
            for record in read(journal, session=ident):
                if record.attempt is not None:
                    self.recorded = max(self.recorded, record.attempt)
                if record.type is RecordType.SESSION_END:
                    self.ended = True
                if record.type is RecordType.DECISION:
                    self._decisions += 1
                    self._denials += record.decision != "allow"
        except JournalError as problem:
            raise BrokerError(problem.message) from problem
        self.number = self.recorded
        self.acknowledged = self.marked = self.durable = 0

    def wants_acknowledgement(self) -> bool:
        """Whether the supervisor should be told now."""
        fresh = self.durable - self.acknowledged
        return fresh > 0 and (self.strict or self.flush or fresh >= _ACKNOWLEDGE_EVERY)

    @property
    def waits(self) -> bool:
        """Whether somebody waits for its records to be on disk."""
        return self.strict or self.flush or self.ending

    # ---- entries

    def decision(self, data: bytes, tail: bytes, make: Callable[[Entry], Template]) -> Template:
        """Return what makes the record of a decision; BrokerError if it is not what it claims."""
        known = self._tails.get(tail)
        if known is None:
            message = self._decode(data)
            known = make(self._decided(message)), message.decision is not Decision.ALLOW
            # a program's arguments can be megabytes: such a tail will hardly come again
            if len(tail) <= _TAIL_MAX:
                if len(self._tails) >= _TAILS_MAX:
                    self._tails.clear()
                self._tails[tail] = known
        template, denied = known
        self._decisions += 1
        self._denials += denied
        return template

    def _decided(self, message: protocol.Decided) -> Entry:
        return Entry(
            type=RecordType.DECISION,
            session=self.id,
            agent=self.agent,
            attempt=message.number,
            pid=message.pid,
            uid=self.uid,
            exe=message.exe,
            action=message.action,
            target=message.target,
            fingerprint=message.fingerprint,
            decision=message.decision.value,
            rule=message.rule,
            reason=message.reason,
            policy=self._policy,
            enforced_by=message.enforced_by,
            latency_ns=message.latency_ns,
        )

    def _decode(self, data: bytes) -> protocol.Decided:
        message = protocol.decode_to_broker(data)
        if not isinstance(message, protocol.Decided):
            raise BrokerError("a decision that is none")
        _check_fingerprint(message.action, message.target, message.fingerprint)
        return message

    def policy_load(self, rules: int) -> Entry:
        """Return the entry that names the policy."""
        return self._entry(RecordType.POLICY_LOAD, detail={"rules": rules, "supervisor": self.pid})

    def start(self, message: protocol.Started) -> Entry:
        """Return the session's first entry, with the walls."""
        detail: dict[str, object] = {
            "command": list(self.command),
            "observe": self.observe,
            "supervisor": self.pid,
            "walls": message.walls,
            "workspace": self.workspace,
        }
        return self._entry(RecordType.SESSION_START, attempt=message.number, detail=detail)

    def violation(self, message: protocol.Violated) -> Entry:
        """Return the entry of a gate-2 mismatch."""
        _check_fingerprint(message.action, message.target, message.fingerprint)
        return Entry(
            type=RecordType.VIOLATION,
            session=self.id,
            agent=self.agent,
            attempt=message.number,
            pid=message.pid,
            uid=self.uid,
            exe=message.exe,
            action=message.action,
            target=message.target,
            fingerprint=message.fingerprint,
            reason=message.reason,
            policy=self._policy,
        )

    def limit(self, message: protocol.Limited) -> Entry:
        """Return the entry of a limit that was reached."""
        return self._entry(
            RecordType.LIMIT,
            attempt=message.number,
            reason=message.reason,
            detail={"limit": message.limit},
        )

    def gap(self, first: int, last: int) -> Entry:
        """Return the entry that says which numbers never came."""
        return self._entry(
            RecordType.GAP,
            reason="records are missing",
            detail={"first": first, "last": last},
        )

    def end(self, reason: str, status: int | None) -> Entry:
        """Return the session's last entry."""
        detail: dict[str, object] = {"decisions": self._decisions, "denials": self._denials}
        if status is not None:
            detail["status"] = status
        return self._entry(RecordType.SESSION_END, reason=reason, detail=detail)

    def _entry(
        self,
        kind: RecordType,
        *,
        attempt: int | None = None,
        reason: str | None = None,
        detail: dict[str, object] | None = None,
    ) -> Entry:
        return Entry(
            type=kind,
            session=self.id,
            agent=self.agent,
            attempt=attempt,
            uid=self.uid,
            reason=reason,
            policy=self._policy,
            detail=detail,
        )


def _check_fingerprint(action: str, target: protocol.JsonObject, claimed: str) -> None:
    # policies.model.fingerprint, on the printable target that came over the wire
    text = msgspec.json.encode({"action": action, "target": target}, order="sorted")
    if hashlib.sha256(text).hexdigest() != claimed:
        raise BrokerError("a fingerprint that does not fit its attempt")
