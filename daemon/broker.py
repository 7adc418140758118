"""The broker: the one authority over sessions, and the only writer of the journal.

One broker owns one state directory for as long as it runs: ``broker.sock`` in
it, and the journal below ``journal/``.  The main thread takes in what the
supervisors send and appends it; a second thread makes it durable, many records
at a time; then every session is told how far its records are on disk.

When a write fails the broker stays up, allows nothing, and can still say why.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import selectors
import signal
import socket
import sys
import time
import traceback
from pathlib import Path

from safeclaw.daemon import control, protocol
from safeclaw.daemon.channel import socket_at
from safeclaw.daemon.client import LOCK_NAME, SOCKET_NAME
from safeclaw.daemon.desk import Desk
from safeclaw.daemon.doors import Doors
from safeclaw.daemon.health import Standing
from safeclaw.daemon.journal.record import Entry, RecordError
from safeclaw.daemon.ledger import Ledger, Position
from safeclaw.daemon.pseudonyms import Veils
from safeclaw.daemon.service import Service
from safeclaw.daemon.sessions import Past, Session, read_past
from safeclaw.daemon.unfinished import LeftOpen, closing
from safeclaw.errors import BrokerError, JournalError, JournalFaultError, SafeclawError
from safeclaw.policies.model import printable

#: How many messages of one session are taken before the others get their turn.
_TURN = 512
#: While another process holds the start lock, an idle broker looks again after this long.
_IDLE_RETRY = 0.1
#: How long records may lie in the sockets while nobody waits for them, in seconds: the
#: supervisors are woken less often, and on one CPU less often interrupted, than by each.
#: Shorter by far than a lease, and than a socket's buffer takes to fill.
_REST = 0.001
#: How soon a thread that comes back from a sync gets the interpreter, in seconds.  Python's
#: own 5 ms are as much as a record may take altogether (docs/adr/journal-commit-pace.md).
_SWITCH = 0.0002


class Broker:
    """Serves one state directory until the last session has ended (or until SIGTERM)."""

    def __init__(
        self,
        state: Path,
        listener: socket.socket,
        *,
        stay: bool = False,
        service: Service | None = None,
    ) -> None:
        """Take over a listener; ``stay`` keeps the broker up without sessions.

        ``service`` may make it the system's broker, for several users.
        """
        self._state = state
        self._stay = stay
        self._directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._stopping = False
        self._rest = False
        self._veils = Veils(state / "keys")
        self._ledger = Ledger(state / "journal", self._veils, self._wake)
        self._left_open = LeftOpen()
        self._service = service or Service(configuration=state)
        self._desk = Desk(state, self._service, self)
        self._doors = Doors(listener, self._desk.authority.access)
        self._doors.watch(self._woken)

    # ---- the loop

    def run(self) -> None:
        """Serve until there is nothing left to do, then close the journal."""
        sys.setswitchinterval(_SWITCH)
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGHUP, self._hang_up if self._stay else self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, self._turn)  # a hook has ended
        try:
            unfinished = self._ledger.open()
            self._desk.authority.load()
            if self._desk.system:
                self._left_open.wait_for(unfinished, self._service.settings.grace)
            else:
                for entry in closing(unfinished):
                    self._append(entry)
            self._ledger.commit()
        except SafeclawError as problem:
            self._ledger.fault = problem
        except OSError as problem:
            text = f"{problem.filename or self._state}: {problem.strerror}"
            self._ledger.fault = JournalError(text)
        if self.fault is not None:
            self._desk.health.faulted(self.fault.message)
        if self._stay:
            self._doors.watch(self._desk.watch())
        self._desk.serve_metrics()
        self._service.ready(self._desk.told())
        while True:
            if self._rest:
                self._rest = False
                time.sleep(_REST)
            for descriptor, events in self._doors.select(self._timeout()):
                session = self._doors.session(descriptor)
                if session is not None:
                    self._serve(session, events)
                elif descriptor == self._doors.listener.fileno():
                    self._doors.accept()
                elif descriptor == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                else:
                    self._desk.watches(descriptor)
            self._acknowledge()
            self._tick()
            self._service.alive(self._desk.told)
            if self._stopping:
                # No session_end: the supervisors may go on with the next broker.
                if not self._desk.system:
                    for session in self._doors.connected():
                        self._post(session, protocol.Refused("the broker is being stopped"))
                self._service.stopping()
                self._finish()
                return
            if self._doors.live() or self._stay:
                self._release()
            elif self._doors.served and self._retire():
                return

    def _release(self) -> None:
        """Let go of the sessions that have ended."""
        for session in self._doors.connected():
            if session.concluded and not session.channel.posted:
                self._drop(session)

    def _timeout(self) -> float | None:
        if self._doors.served and not self._stay and not self._doors.live():
            return _IDLE_RETRY
        waits = [self._service.next_alive(), self._desk.next_tick()]
        waits += [self._left_open.next_due(), self._ledger.next_tick()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _stop(self, *_: object) -> None:
        self._stopping = self._ledger.closing = True

    def _turn(self, *_: object) -> None:
        pass  # the wake-up descriptor has the loop turn

    def _hang_up(self, *_: object) -> None:
        self._desk.look()

    def _serve(self, session: Session, events: int) -> None:
        channel = session.channel
        before = session.number
        try:
            if events & selectors.EVENT_WRITE:
                self._doors.push(session)
            if not events & selectors.EVENT_READ:
                return
            for _ in range(_TURN):
                if self._doors.full(session):
                    break
                data = channel.take()
                if data is None:
                    break
                if not data:
                    self._gone(session)
                    return
                self._take(session, data)
                if channel.fileno() < 0:
                    return  # it was refused
                if session.waits:
                    break  # it sends one and waits; if there is more, the poller says so
            self._ledger.append_taken()
        except JournalFaultError as problem:
            self._fail(problem)
        except (BrokerError, JournalError) as problem:
            self._refuse(session, problem.message)
            return
        except OSError:
            self._gone(session)
        except Exception as problem:
            # SAFETY: what one peer says must not take the others' broker along.
            sys.stderr.write(f"safeclawd: a defect, please report it: {_place_of(problem)}\n")
            self._refuse(session, f"a message that makes no sense ({type(problem).__name__})")
            return
        self._ledger.mark(session)
        if not self._rest and session.number > before and not session.waits:
            self._rest = not any(each.waits for each in self._doors.connected())

    # ---- what supervisors say

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
                raise BrokerError("a request in the middle of a session")
        elif control.is_request(data):
            self._desk.answer(session, data)
            return
        message = protocol.decode_to_broker(data)
        if isinstance(message, protocol.Hello):
            if session.id is not None:
                raise BrokerError("the session is already open")
            self._open(session, message)
            return
        if session.id is None:
            raise BrokerError("a session begins with hello")
        match message:
            case protocol.Renew(at):
                # SAFETY: who was told to stop, or has ended, gets no more time.
                if self.fault is None and not session.ended and not session.stopping:
                    self._post(session, protocol.Granted(at))
            case protocol.Flush():
                session.flush = True
            case protocol.End(reason, status):
                self._end(session, reason, status)
            case protocol.Started(number, _):
                if self.fault is None and self._in_order(session, number):
                    self._append(session.start(message))
            case protocol.Violated(number):
                if self.fault is None and self._in_order(session, number):
                    self._append(session.violation(message))
            case protocol.Limited(number):
                if self.fault is None and self._in_order(session, number):
                    self._append(session.limit(message))
            case protocol.Adopted(number):
                if self.fault is None and self._in_order(session, number):
                    self._ledger.append_taken()
                    self._append(session.adopt(message))
            case protocol.Ask():
                if self.fault is None and not session.ended:
                    self._desk.authority.ask(session, message)
            case protocol.Withdraw(ticket):
                self._desk.authority.withdraw(session, ticket)
            case protocol.Decided():
                raise BrokerError("a decision in another than its one encoding")

    def _open(self, session: Session, hello: protocol.Hello) -> None:
        if hello.version != protocol.VERSION:
            raise BrokerError(
                f"the supervisor speaks version {hello.version}, this broker "
                f"{protocol.VERSION}: end the other sessions first"
            )
        journal = self._ledger.journal
        if journal is None:
            self._deny(session, self.fault or BrokerError("the broker is not ready"))
            return
        try:
            opening = self._desk.authority.open(session.peer, hello)
        except SafeclawError as problem:
            self._deny(session, problem)
            return
        past = None
        if hello.resume is not None:
            # SAFETY: before the session has that name: else its refusal would end another's.
            past = self._past(session, opening.agent, hello.resume)
        session.open(hello, opening)
        if past is not None:
            session.resume(past)
        assert session.id is not None
        try:
            self._veils.cover(session.id, opening.policy, hello.workspace, hello.home)
        except JournalError as problem:
            session.id = None
            self._deny(session, problem)
            return
        if past is None:
            self._append(session.policy_load(len(opening.policy.rules)))
        lease = protocol.Lease(
            session.id,
            opening.policy,
            (str(self._state), *self._service.protected),
            journal.chain_id,
            os.getpid(),
            opening.read_only,
            self._service.settings.grace if self._desk.system else 0.0,
        )
        self._post(session, lease)
        # While the supervisor puts up the walls: what the first checkpoint is signed with.
        from cryptography.hazmat.primitives.asymmetric import ed25519  # noqa: F401  # pyright: ignore[reportUnusedImport]

    def _past(self, session: Session, agent: str, ident: str) -> Past:
        """Return what the journal holds of a session that is to go on.  BrokerError."""
        if any(one.id == ident for one in self.sessions()):
            raise BrokerError("the session is open already")
        # Reading takes as long as the journal is: at most once for each session that was.
        if self._desk.system and ident not in self._left_open:
            raise BrokerError("no such session was left open")
        past = read_past(self._state / "journal", ident, uid=session.uid, agent=agent)
        self._left_open.came_back(ident)
        return past

    # ---- what its desk needs

    @property
    def fault(self) -> SafeclawError | None:
        """Why nothing is allowed any more."""
        return self._ledger.fault

    @property
    def position(self) -> Position:
        """Where the journal stands."""
        return self._ledger.position

    @property
    def standing(self) -> Standing:
        """Where the journal stands, and its copy."""
        return self._ledger.standing

    def sessions(self) -> list[Session]:
        """Return the sessions that run."""
        return self._doors.running()

    def append_urgent(self, entry: Entry) -> None:
        """Append a record, and have it on disk soon; a fault is the whole broker's.

        BrokerError for what no record can hold: then nothing is appended.
        """
        if self.fault is not None:
            return
        try:
            self._append(entry)
            self.hurry()
        except RecordError as problem:
            # Nothing is wrong with the journal, but with what a peer wants recorded.
            raise BrokerError(f"cannot be recorded: {problem.message}") from problem
        except JournalError as problem:
            self._fail(problem)

    def hurry(self) -> None:
        """Have what is appended on disk soon."""
        self._ledger.commit(soon=True)

    def send(self, session: Session, message: bytes) -> None:
        """Send a message now, as far as there is room; the rest when there is."""
        self._doors.send(session, message)

    def expel(self, session: Session, reason: str) -> None:
        """End a session that does not end itself."""
        self._refuse(session, reason)

    def wake(self) -> None:
        """Have the loop turn, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"w")

    def _in_order(self, session: Session, number: int) -> bool:
        """Check the number; False for a record that a resumed session need not repeat."""
        if number == session.number + 1:
            session.number = number
            return True
        if number <= session.recorded:
            session.number = max(session.number, number)
            return False
        if number <= session.number:
            raise BrokerError(f"the number {number} was used twice")
        self._append(session.gap(session.number + 1, number - 1))
        session.number = number
        return True

    def _end(self, session: Session, reason: str, status: int | None) -> None:
        if self.fault is None and not session.ended:
            self._append(session.end(reason, status))
        session.ended = True
        session.ending = True

    def _gone(self, session: Session) -> None:
        """The supervisor has closed its end, or was killed."""
        if session.concluded or session.id is None:
            self._drop(session)
            return
        if not session.ended and self.fault is None:
            session.ended = True
            try:
                self._append(session.end("the supervisor has gone", None))
            except JournalError as problem:
                self._fail(problem)
        # Not read any more, but kept: it closes when all is on disk.
        self._doors.deafen(session)
        session.ending = True
        self._ledger.mark(session)

    # ---- the journal

    def _append(self, entry: Entry) -> None:
        self._ledger.append(entry)
        self._desk.health.noted(entry)

    def _acknowledge(self) -> None:
        """Tell the sessions how far their records are on disk."""
        try:
            durable = self._ledger.settled()
        except JournalError as problem:
            self._fail(problem)
            durable = self.position.durable
        for session in self._doors.connected():
            number = session.durable
            marks = session.marks
            while marks and marks[0][0] <= durable:
                number = marks.popleft()[1]
            if session.ending and (self.fault is not None or not marks):
                self._conclude(session, number)
                continue
            session.durable = number
            if session.wants_acknowledgement():
                session.acknowledged = number
                self._post(session, protocol.Ack(number))
            if not marks:
                session.flush = False
        self._desk.settle(durable)  # even without a journal: why is still to be told

    def _conclude(self, session: Session, number: int) -> None:
        """Confirm the end of a session, once it is on disk.

        The channel of the last one closes only with the broker: whoever waits
        for that finds the journal closed.
        """
        if self.fault is None:
            self._post(session, protocol.Ack(number))
            self._post(session, protocol.Ended())
        session.ending = False
        session.concluded = True
        self._desk.left(session)

    def _fail(self, problem: JournalError) -> None:
        """Allow nothing any more; tell every session why."""
        reason = self._ledger.fail(problem)
        if reason is not None and self.fault is not None:
            for session in self._doors.connected():
                self._post(session, protocol.Fault(reason))
            self._desk.health.faulted(self.fault.message)

    def _tick(self) -> None:
        """Do what is due: expired questions, lost sessions, checkpoints and heartbeats."""
        self._desk.tick()
        if self.fault is not None:
            return
        for entry in self._left_open.due():
            self.append_urgent(entry)
        try:
            self._ledger.tick()
        except JournalError as problem:
            self._fail(problem)

    # ---- sockets

    def _post(self, session: Session, message: protocol.ToSupervisor) -> None:
        self.send(session, protocol.encode(message))

    def _deny(self, session: Session, problem: SafeclawError) -> None:
        """Refuse to open a session."""
        self._post(session, protocol.Refused(problem.message, problem.hint))
        self._drop(session)

    def _refuse(self, session: Session, reason: str) -> None:
        """End a session that broke the rules, or that cannot go on."""
        try:
            self._ledger.append_taken()
        except JournalFaultError as problem:
            self._fail(problem)
        except JournalError:
            pass  # it is what the session is refused for
        if session.id is not None and not session.ended and self.fault is None:
            try:
                self._append(session.end(f"ended by the broker: {reason}", None))
                self._ledger.commit()
            except JournalError as problem:
                self._fail(problem)
        self._post(session, protocol.Refused(reason))
        self._drop(session)

    def _drop(self, session: Session) -> None:
        if session.channel.fileno() < 0:
            return
        session.dropped = True
        self._desk.left(session)
        if session.id is not None:
            self._left_open.broke_off(session.id)
        self._veils.uncover(session.id or "")
        self._doors.close(session)

    # ---- the end

    def _retire(self) -> bool:
        """Stop if nobody is about to connect; False when somebody is."""
        lock = os.open(self._state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._doors.accept()
            if self._doors.live():
                return False
            # Still under the lock: whoever starts the next broker finds the journal free.
            self._finish()
            return True
        finally:
            os.close(lock)

    def _finish(self) -> None:
        with contextlib.suppress(OSError):  # the lock and the journal decide, not the name
            os.unlink(socket_at(self._directory, SOCKET_NAME))
        self._doors.listener.close()
        self._ledger.close()
        # Whoever waits for the end need not wait until this process is taken apart.
        for session in self._doors.connected():
            self._drop(session)


def _place_of(problem: Exception) -> str:
    """Return what went wrong and where, in one line."""
    innermost = traceback.extract_tb(problem.__traceback__)[-1]
    where = f"{os.path.basename(innermost.filename)}:{innermost.lineno}"
    return printable(f"{type(problem).__name__} at {where}: {problem}"[:1000])
