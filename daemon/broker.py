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
import signal
import socket
import sys
import time
from pathlib import Path

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import socket_at
from safeclaw.daemon.client import LOCK_NAME, SOCKET_NAME
from safeclaw.daemon.desk import Desk
from safeclaw.daemon.doors import Doors
from safeclaw.daemon.health import Standing
from safeclaw.daemon.intake import Intake
from safeclaw.daemon.journal.record import Entry, RecordError
from safeclaw.daemon.ledger import Ledger, Position
from safeclaw.daemon.pseudonyms import Veils
from safeclaw.daemon.service import Service
from safeclaw.daemon.sessions import Session
from safeclaw.daemon.unfinished import closing
from safeclaw.errors import BrokerError, JournalError, SafeclawError

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
        veils = Veils(state / "keys")
        self._service = service or Service(configuration=state)
        keeping = self._service.settings.journal
        self._ledger = Ledger(state / "journal", keeping, veils, self._wake)
        self._desk = Desk(state, self._service, self)
        self._doors = Doors(listener, self._desk.authority.access)
        self._doors.watch(self._woken)
        self._intake = Intake(
            state, self._service, self._ledger, self._doors, self._desk, veils, self.wake
        )

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
                self._intake.left_open.wait_for(unfinished, self._service.settings.grace)
            else:
                for entry in closing(unfinished):
                    self._intake.append(entry)
            self._ledger.commit()
        except SafeclawError as problem:
            self._ledger.fault = problem
        except OSError as problem:
            text = f"{problem.filename or self._state}: {problem.strerror}"
            self._ledger.fault = JournalError(text)
        if self.fault is not None:
            self._desk.health.faulted(self.fault.message)
        if self._stay:
            self._doors.watch(self._desk.lookout.watch())
        self._desk.serve_metrics()
        self._service.ready(self._desk.told())
        while True:
            if self._intake.rest:
                self._intake.rest = False
                time.sleep(_REST)
            for descriptor, events in self._doors.select(self._timeout()):
                session = self._doors.session(descriptor)
                if session is not None:
                    self._intake.serve(session, events)
                elif descriptor == self._doors.listener.fileno():
                    self._doors.accept()
                elif descriptor == self._woken:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._woken, 4096)
                else:
                    self._desk.lookout.watches(descriptor)
            self._intake.admit()
            self._ledger.commit_marked()
            self._acknowledge()
            self._tick()
            self._service.alive(self._desk.told)
            if self._stopping:
                # No session_end: the supervisors may go on with the next broker.
                if not self._desk.system:
                    for session in self._doors.connected():
                        self._intake.post(session, protocol.Refused("the broker is being stopped"))
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
            # SAFETY: who has closed its end reads nothing any more, and must not be kept for it.
            if session.concluded and (session.deaf or not session.channel.posted):
                self._intake.drop(session)

    def _timeout(self) -> float | None:
        if self._doors.served and not self._stay and not self._doors.live():
            return _IDLE_RETRY
        waits = [self._service.next_alive(), self._desk.next_tick()]
        waits += [self._intake.left_open.next_due(), self._ledger.next_tick()]
        return min((wait for wait in waits if wait is not None), default=None)

    def _stop(self, *_: object) -> None:
        self._stopping = self._ledger.closing = True

    def _turn(self, *_: object) -> None:
        pass  # the wake-up descriptor has the loop turn

    def _hang_up(self, *_: object) -> None:
        self._desk.lookout.look()

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
            self._intake.append(entry)
            self.hurry()
        except RecordError as problem:
            # Nothing is wrong with the journal, but with what a peer wants recorded.
            raise BrokerError(
                f"cannot be recorded: {problem.message}",
                hint="only what the record can hold may be done: see docs/audit-format.md",
            ) from problem
        except JournalError as problem:
            self._intake.fail(problem)

    def hurry(self) -> None:
        """Have what is appended on disk soon."""
        self._ledger.commit(soon=True)

    def send(self, session: Session, message: bytes) -> None:
        """Send a message now, as far as there is room; the rest when there is."""
        self._doors.send(session, message)

    def heavy(self, session: Session, more: int) -> bool:
        """Whether so many bytes more are too many for a session's user."""
        return self._doors.heavy(session, more)

    def expel(self, session: Session, reason: str) -> None:
        """End a session that does not end itself."""
        self._intake.refuse(session, reason)

    def wake(self) -> None:
        """Have the loop turn, from any thread."""
        with contextlib.suppress(BlockingIOError):
            os.write(self._wake, b"w")

    # ---- the journal

    def _acknowledge(self) -> None:
        """Tell the sessions how far their records are on disk."""
        try:
            durable = self._ledger.settled()
        except JournalError as problem:
            self._intake.fail(problem)
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
                self._intake.post(session, protocol.Ack(number))
            if not marks:
                session.flush = False
        self._desk.settle(durable)  # even without a journal: why is still to be told

    def _conclude(self, session: Session, number: int) -> None:
        """Confirm the end of a session, once it is on disk.

        The channel of the last one closes only with the broker: whoever waits
        for that finds the journal closed.
        """
        if self.fault is None:
            self._intake.post(session, protocol.Ack(number))
            self._intake.post(session, protocol.Ended())
        session.ending = False
        session.concluded = True
        self._desk.left(session)

    def _tick(self) -> None:
        """Do what is due: expired questions, lost sessions, checkpoints and heartbeats."""
        self._desk.tick()
        if self.fault is not None:
            return
        for entry in self._intake.left_open.due():
            self.append_urgent(entry)
        try:
            self._ledger.tick()
        except JournalError as problem:
            self._intake.fail(problem)

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
        self._desk.close()
        self._ledger.close()
        # Whoever waits for the end need not wait until this process is taken apart.
        for session in self._doors.connected():
            self._intake.drop(session)
