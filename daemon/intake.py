"""What supervisors say, and what becomes of it: the broker's side of its sessions.

It belongs to the broker's main thread.  It reads the sessions' sockets, checks their numbers,
appends their records, and ends who breaks the rules.
"""

from __future__ import annotations

import functools
import os
import selectors
import sys
import traceback
from collections.abc import Callable
from pathlib import Path

from safeclaw.daemon import control, protocol
from safeclaw.daemon.brought import Brought
from safeclaw.daemon.desk import Desk
from safeclaw.daemon.doors import Doors
from safeclaw.daemon.journal.record import MAX_LINE, Entry
from safeclaw.daemon.ledger import Ledger
from safeclaw.daemon.opening import Opening
from safeclaw.daemon.past import Past, read_past
from safeclaw.daemon.pseudonyms import Veils
from safeclaw.daemon.service import Service
from safeclaw.daemon.sessions import Session
from safeclaw.daemon.unfinished import LeftOpen
from safeclaw.errors import (
    BrokerError,
    JournalError,
    JournalFaultError,
    ProtocolError,
    SafeclawError,
)
from safeclaw.policies.document import Policy
from safeclaw.policies.model import printable

#: How many messages of one session are taken before the others get their turn.
_TURN = 512
#: The longest message in a session.  What is a little too long for a record is told so.
_RECORD_MAX = MAX_LINE * 3 // 2


class Intake:
    """See the module.  It borrows all but itself from the broker."""

    def __init__(
        self,
        state: Path,
        service: Service,
        ledger: Ledger,
        doors: Doors,
        desk: Desk,
        veils: Veils,
        wake: Callable[[], None],
    ) -> None:
        self._state = state
        self._service = service
        self._ledger = ledger
        self._doors = doors
        self._desk = desk
        self._veils = veils
        self._brought = Brought(state, wake)
        #: The sessions that may come back.
        self.left_open = LeftOpen()
        #: Whether the loop may rest: records came in, and nobody waits for any.
        self.rest = False

    def serve(self, session: Session, events: int) -> None:
        """Take in what a session says, and send it what there is room for."""
        channel = session.channel
        before = session.number
        if not session.waits:
            self._ledger.commit_marked()  # this one may take long; who waits is not kept for it
        try:
            if events & selectors.EVENT_WRITE:
                self._doors.push(session)
            if not events & selectors.EVENT_READ:
                return
            for _ in range(_TURN):
                if self._doors.full(session):
                    break
                if self._doors.heavy(session):
                    raise BrokerError(
                        "its user's sessions hold too much of the broker's memory",
                        hint="run fewer sessions at once",
                    )
                data = channel.take()
                if data is None:
                    break
                if not data:
                    self._gone(session)
                    return
                self._take(session, data)
                if channel.fileno() < 0:
                    return  # it was refused
                if session.waits or session.id is None:
                    break  # it sends one and waits; if there is more, the poller says so
            self._ledger.append_taken()
        except Exception as problem:
            self._went_wrong(session, problem)
            if channel.fileno() < 0:
                return  # it was refused
        self._ledger.mark(session)
        if not self.rest and session.number > before and not session.waits:
            self.rest = not any(each.waits for each in self._doors.connected())

    def admit(self) -> None:
        """Go on with the sessions whose policies have been read."""
        for session, hello, policy in self._brought.done():
            if session.dropped:
                continue
            self._doors.hear(session)
            try:
                if isinstance(policy, SafeclawError):
                    self._deny(session, policy)
                elif isinstance(policy, Exception):
                    raise policy
                else:
                    self._admit(session, hello, policy)
            except Exception as problem:
                self._went_wrong(session, problem)

    def _went_wrong(self, session: Session, problem: Exception) -> None:
        """Do what has to be done after what a session said."""
        match problem:
            case JournalFaultError():
                self.fail(problem)
            case BrokerError() | JournalError():
                self.refuse(session, problem.message)
            case OSError():
                self._gone(session)
            case _:
                # SAFETY: what one peer says must not take the others' broker along.
                sys.stderr.write(f"safeclawd: a defect, please report it: {_place_of(problem)}\n")
                self.refuse(session, f"a message that makes no sense ({type(problem).__name__})")

    def _take(self, session: Session, data: bytes) -> None:
        if session.id is not None:
            split = protocol.split_decided(data)
            if split is not None:
                number, pid, latency, tail = split
                journal = self._ledger.journal
                if journal is None:
                    return
                if self._in_order(session, number):
                    template = session.decision(data, tail, journal.template)
                    self._ledger.take(template, number, pid, latency)
                return
            elif control.is_request(data):
                raise ProtocolError("a request in the middle of a session")
        elif control.is_request(data):
            self._desk.answer(session, data)
            return
        message = protocol.decode_to_broker(data)
        if isinstance(message, protocol.Hello):
            if session.id is not None:
                raise ProtocolError("the session is already open")
            session.weight = len(data)
            session.channel.message_max = _RECORD_MAX
            self._open(session, message)
            return
        if session.id is None:
            raise ProtocolError("a session begins with hello")
        match message:
            case protocol.Renew(at):
                # SAFETY: who was told to stop, or has ended, gets no more time.
                if self._ledger.fault is None and not session.ended and not session.stopping:
                    self.post(session, protocol.Granted(at))
            case protocol.Flush():
                session.flush = True
            case protocol.End(reason, status):
                self._end(session, reason, status)
            case protocol.Started(number, _):
                if self._ledger.fault is None and self._in_order(session, number):
                    self.append(session.start(message))
            case protocol.Violated(number):
                if self._ledger.fault is None and self._in_order(session, number):
                    self.append(session.violation(message))
            case protocol.Limited(number):
                if self._ledger.fault is None and self._in_order(session, number):
                    self.append(session.limit(message))
            case protocol.Adopted(number):
                if self._ledger.fault is None and self._in_order(session, number):
                    self._ledger.append_taken()
                    known = functools.partial(self._desk.authority.was_in_force, session)
                    self.append(session.adopt(message, known))
            case protocol.Ask():
                if self._ledger.fault is None and not session.ended:
                    self._desk.authority.questions.ask(session, message)
            case protocol.Withdraw(ticket):
                self._desk.authority.questions.withdraw(session, ticket)
            case protocol.Decided():
                raise ProtocolError("a decision in another than its one encoding")

    def _open(self, session: Session, hello: protocol.Hello) -> None:
        if hello.version != protocol.VERSION:
            raise ProtocolError(
                f"the supervisor speaks version {hello.version}, this broker "
                f"{protocol.VERSION}: end the other sessions first"
            )
        try:
            brings = self._desk.authority.brings_policy(session.peer, hello)
        except SafeclawError as problem:
            self._deny(session, problem)
            return
        if brings:
            # Not read from meanwhile: it waits for its lease, and has nothing to say before.
            self._doors.deafen(session)
            self._brought.read(session, hello)
        else:
            self._admit(session, hello, None)

    def _admit(self, session: Session, hello: protocol.Hello, policy: Policy | None) -> None:
        """Open a session, on the policy it has brought or its registered one."""
        journal = self._ledger.journal
        if journal is None:
            self._deny(session, self._ledger.fault or BrokerError("the broker is not ready"))
            return
        try:
            opening = self._desk.authority.open(session.peer, hello, policy)
        except SafeclawError as problem:
            self._deny(session, problem)
            return
        past = None
        if hello.resume is not None:
            # SAFETY: before the session has that name: else its refusal would end another's.
            past = self._past(session, opening, hello.resume)
        session.open(hello, opening)
        if past is not None:
            known = functools.partial(self._desk.authority.was_in_force, opening)
            session.resume(past, opening.policy, known, self._veils.fingerprint)
        assert session.id is not None
        try:
            self._veils.cover(session.id, opening.policy, hello.workspace, hello.home)
        except JournalError as problem:
            session.id = None
            self._deny(session, problem)
            return
        if past is None:
            self._desk.authority.began(session)
            self.append(session.policy_load(len(opening.policy.rules)))
        lease = protocol.Lease(
            session.id,
            opening.policy,
            (str(self._state), *self._service.protected),
            journal.chain_id,
            os.getpid(),
            opening.read_only,
            self._service.settings.grace if self._desk.system else 0.0,
        )
        self.post(session, lease)
        # While the supervisor puts up the walls: what the first checkpoint is signed with.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401  # pyright: ignore[reportUnusedImport]

    def _past(self, session: Session, opening: Opening, ident: str) -> Past:
        """Return what the journal holds of a session that is to go on.  BrokerError."""
        if any(one.id == ident for one in self._doors.running()):
            raise BrokerError("the session is open already", hint="safeclaw ps")
        # Reading takes as long as the journal is: at most once for each session that was.
        if self._desk.system and ident not in self.left_open:
            raise BrokerError("no such session was left open", hint="start the agent again")

        def known(sha256: str) -> Policy | None:
            if sha256 == opening.policy.sha256:
                return opening.policy
            return self._desk.authority.was_in_force(opening, sha256)

        past = read_past(
            self._state / "journal", ident, uid=session.uid, agent=opening.agent, known=known
        )
        self.left_open.came_back(ident)
        return past

    def _in_order(self, session: Session, number: int) -> bool:
        """Check the number; False for a record that a resumed session need not repeat."""
        if number == session.number + 1:
            session.number = number
            return True
        if number <= session.recorded:
            session.number = max(session.number, number)
            return False
        if number <= session.number:
            raise ProtocolError(f"the number {number} was used twice")
        self.append(session.gap(session.number + 1, number - 1))
        session.number = number
        return True

    def _end(self, session: Session, reason: str, status: int | None) -> None:
        if self._ledger.fault is None and not session.ended:
            self.append(session.end(reason, status))
        session.ended = True
        session.ending = True

    def _gone(self, session: Session) -> None:
        """The supervisor has closed its end, or was killed."""
        if session.concluded or session.id is None:
            self.drop(session)
            return
        if not session.ended and self._ledger.fault is None:
            session.ended = True
            try:
                self.append(session.end("the supervisor has gone", None))
            except JournalError as problem:
                self.fail(problem)
        # Not read any more, but kept: it closes when all is on disk.
        self._doors.deafen(session)
        session.ending = True
        self._ledger.mark(session)

    def append(self, entry: Entry) -> None:
        """Append a record.  JournalError."""
        self._ledger.append(entry)
        self._desk.health.noted(entry)

    def post(self, session: Session, message: protocol.ToSupervisor) -> None:
        """Send a message now, as far as there is room."""
        self._doors.send(session, protocol.encode(message))

    def _deny(self, session: Session, problem: SafeclawError) -> None:
        """Refuse to open a session."""
        self.post(session, protocol.Refused(problem.message, problem.hint))
        self.drop(session)

    def refuse(self, session: Session, reason: str) -> None:
        """End a session that broke the rules, or that cannot go on."""
        try:
            self._ledger.append_taken()
        except JournalFaultError as problem:
            self.fail(problem)
        except JournalError:
            pass  # it is what the session is refused for
        if session.id is not None and not session.ended and self._ledger.fault is None:
            try:
                self.append(session.end(f"ended by the broker: {reason}", None))
                self._ledger.commit()
            except JournalError as problem:
                self.fail(problem)
        self.post(session, protocol.Refused(reason))
        self.drop(session)

    def drop(self, session: Session) -> None:
        """Let go of a session, and of all that was kept for it."""
        if session.channel.fileno() < 0:
            return
        session.dropped = True
        self._desk.left(session)
        if session.id is not None:
            self.left_open.broke_off(session.id)
        self._veils.uncover(session.id or "")
        self._doors.close(session)

    def fail(self, problem: JournalError) -> None:
        """Allow nothing any more; tell every session why."""
        reason = self._ledger.fail(problem)
        if reason is not None and self._ledger.fault is not None:
            for session in self._doors.running():  # commands are answered as such
                self.post(session, protocol.Fault(reason))
            self._desk.health.faulted(self._ledger.fault.message)


def _place_of(problem: Exception) -> str:
    """Return what went wrong and where, in one line."""
    innermost = traceback.extract_tb(problem.__traceback__)[-1]
    where = f"{os.path.basename(innermost.filename)}:{innermost.lineno}"
    return printable(f"{type(problem).__name__} at {where}: {problem}"[:1000])
