"""The broker's side of one session: its place in the numbering, and its records.

A session belongs to the broker and lives as long as its channel.  It turns what
a supervisor says into journal entries; it writes nothing itself.
"""

from __future__ import annotations

import collections
import hashlib
import os
import time
from collections.abc import Callable

import msgspec

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.journal.record import Entry, PolicyRef, RecordType, Template
from safeclaw.daemon.opening import Opening
from safeclaw.daemon.past import Known, Past, asking
from safeclaw.daemon.peer import Peer, process_of
from safeclaw.errors import ProtocolError
from safeclaw.policies.document import Assurance, Policy
from safeclaw.policies.model import Decision

#: A session that does not wait is told at least this often how far its records are.
_ACKNOWLEDGE_EVERY = 1024
_TAILS_MAX = 8192
_TAIL_MAX = 8192


class Session:
    """One supervisor and its agent."""

    def __init__(self, channel: Channel, peer: Peer) -> None:
        self.channel = channel
        self.peer = peer
        self.pid = peer.pid
        self.uid = peer.uid
        self.id: str | None = None
        self.agent: str | None = None
        self.command: tuple[str, ...] = ()
        self.workspace = ""
        self.observe = False
        self.strict = False
        #: It runs a registered agent, on this key.
        self.registered = False
        self.key = ""
        self.started = 0.0
        #: What is kept for it besides its channel, in bytes: how it began, and replies to come.
        self.weight = 0
        self.owed = 0
        #: When it was told to stop, on the monotonic clock.
        self.killed: float | None = None
        self.stopping = False
        #: A pidfd of the process that connected; None where it was gone already.
        self.process = process_of(channel.sock, peer)
        self._policy: PolicyRef | None = None
        self._asking_rules: frozenset[str] = frozenset()
        #: Policies that it was given and has not adopted yet.
        self.offered: list[Policy] = []
        #: It has come back, and may have to adopt first what another broker had offered.
        self.resumed = False
        #: How many attempts of each fingerprint a person has allowed, and are not recorded yet.
        self.answered: collections.Counter[str] = collections.Counter()
        self._veiled: Callable[[str], str] = str
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
        self.dropped = False
        #: Its supervisor has closed its end.
        self.deaf = False
        #: Its counts are kept elsewhere.
        self.counted = False
        self._decisions = 0
        self._denials = 0
        self._before = (0, 0)
        self._tails: dict[bytes, tuple[Template, bool]] = {}

    def open(self, hello: protocol.Hello, opening: Opening) -> None:
        """Begin, under a policy."""
        self.id = os.urandom(8).hex()
        self.agent = opening.agent
        self.registered = opening.registered
        self.key = opening.key
        self.started = time.time()
        self.command = hello.command
        self.workspace = hello.workspace
        self.observe = hello.observe
        self._under(opening.policy)

    def _under(self, policy: Policy) -> None:
        self.strict = policy.assurance is Assurance.STRICT
        self._policy = PolicyRef(policy.name, policy.sha256, policy.version)
        self._asking_rules = asking(policy)
        self._tails.clear()

    @property
    def policy_sha256(self) -> str:
        """The hash of the policy in force."""
        return self._policy.sha256 if self._policy is not None else ""

    @property
    def policy_name(self) -> str:
        """The name of the policy in force."""
        return self._policy.name if self._policy is not None else ""

    @property
    def counts(self) -> tuple[int, int]:
        """How many decisions were taken in, and how many of them are denials."""
        return self._decisions, self._denials

    @property
    def fresh_counts(self) -> tuple[int, int]:
        """The same, without what another broker had taken in."""
        return self._decisions - self._before[0], self._denials - self._before[1]

    def adopt(self, message: protocol.Adopted, known: Known) -> Entry:
        """Go on under a policy that was offered; BrokerError for any other.

        Another broker may have offered one that was in force between: who comes back may still
        have to say that it was adopted, before what this broker's lease offered.  ``known``
        returns what was in force, by its hash.
        """
        previous = self.policy_sha256
        if message.sha256 != previous:
            found = [one for one in self.offered if one.sha256 == message.sha256]
            if found:
                self.offered.clear()
                self.resumed = False
            elif self.resumed and (between := known(message.sha256)) is not None:
                found = [between]
            else:
                raise ProtocolError("a policy was adopted that was not offered")
            self._under(found[-1])
        return self._entry(
            RecordType.POLICY_LOAD, attempt=message.number, detail={"previous": previous}
        )

    def resume(
        self, past: Past, policy: Policy, known: Known, veiled: Callable[[str], str]
    ) -> None:
        """Go on with a session whose broker was lost, after what the journal holds of it.

        ``policy`` is what its lease offers; what it did before it adopts that was decided by the
        one it was held to.  ``veiled`` returns the pseudonym under which a fingerprint may be
        recorded.
        """
        self.resumed = True
        self.offered.append(policy)
        if past.policy != policy.sha256 and (before := known(past.policy)) is not None:
            self._under(before)
        self.answered, self._veiled = past.answered, veiled
        self.id = past.session
        self.recorded = self.number = past.recorded
        self.ended = past.ended
        self._decisions, self._denials = past.decisions, past.denials
        self._before = self.counts
        self.acknowledged = self.marked = self.durable = 0

    def _used(self, fingerprint: str | None, decision: str | None, rule: str | None) -> bool:
        """Note that an approved attempt was made; False when nobody has approved it."""
        if decision != "allow" or rule not in self._asking_rules:
            return True
        plain = fingerprint or ""
        # SAFETY: who comes back has no more than what the chain says it was allowed.
        for name in (plain, self._veiled(plain)):
            if self.answered[name] > 0:
                self.answered[name] -= 1
                return True
        return False

    def wants_acknowledgement(self) -> bool:
        """Whether the supervisor should be told now."""
        fresh = self.durable - self.acknowledged
        return fresh > 0 and (self.strict or self.flush or fresh >= _ACKNOWLEDGE_EVERY)

    @property
    def holds(self) -> int:
        """How much memory it takes, in bytes, as far as it has a say in that."""
        return self.weight + self.owed + self.channel.held

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
            if not self._used(message.fingerprint, message.decision.value, message.rule):
                raise ProtocolError("an attempt was allowed that nobody has approved")
            known = make(self._decided(message)), message.decision is not Decision.ALLOW
            # a program's arguments can be megabytes: such a tail will hardly come again;
            # and what was approved is looked at each time
            if len(tail) <= _TAIL_MAX and message.rule not in self._asking_rules:
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
            raise ProtocolError("a decision that is none")
        check_fingerprint(message.action, message.target, message.fingerprint)
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
            **({"key": self.key, "registered": True} if self.registered else {}),
            "workspace": self.workspace,
        }
        return self._entry(RecordType.SESSION_START, attempt=message.number, detail=detail)

    def violation(self, message: protocol.Violated) -> Entry:
        """Return the entry of a gate-2 mismatch."""
        check_fingerprint(message.action, message.target, message.fingerprint)
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


def check_fingerprint(action: str, target: protocol.JsonObject, claimed: str) -> None:
    """Raise BrokerError unless a fingerprint is the one of this attempt."""
    # policies.model.fingerprint, on the printable target that came over the wire
    text = msgspec.json.encode({"action": action, "target": target}, order="sorted")
    if hashlib.sha256(text).hexdigest() != claimed:
        raise ProtocolError("a fingerprint that does not fit its attempt")
