"""The broker: the one authority over sessions, and the only writer of the journal.

One broker owns one state directory for as long as it runs: ``broker.sock`` in
it, and the journal below ``journal/``.  The main thread takes in what the
supervisors send and appends it; a second thread makes it durable, many records
at a time; then every session is told how far its records are on disk.

When a write fails the broker stays up, allows nothing, and can still say why.
"""

from __future__ import annotations

import collections
import fcntl
import os
import selectors
import signal
import socket
import stat
import threading
import time
from pathlib import Path

from safeclaw.daemon import protocol
from safeclaw.daemon.channel import Channel, peer_credentials, socket_at
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.record import Entry, PolicyRef, RecordType
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError, JournalError, JournalFaultError, SafeclawError

SOCKET_NAME = "broker.sock"
LOCK_NAME = "start.lock"
#: How many messages of one session are taken before the others get their turn.
_TURN = 512
#: While another process holds the start lock, an idle broker looks again after this long.
_IDLE_RETRY = 0.1
_TICK = 1.0


class Broker:
    """Serves one state directory until the last session has ended (or until SIGTERM)."""

    def __init__(self, state: Path, *, stay: bool = False) -> None:
        """Listen; raises BrokerError when that is not possible.

        The caller holds the start lock.  ``stay`` keeps the broker up without sessions.
        """
        self._state = state
        self._stay = stay
        self._directory = os.open(state, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._selector = selectors.EpollSelector()
        self._listener = self._listen()
        self._sessions: dict[int, Session] = {}
        self._journal: Journal | None = None
        self._fault: SafeclawError | None = None
        self._woken, self._wake = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._stopping = False
        # Guards the next four; the commit thread waits on it.
        self._work = threading.Condition()
        self._appended = 0
        self._durable = 0
        self._commit_fault: JournalError | None = None
        self._closing = False
        self._next_tick: float | None = None

    def _listen(self) -> socket.socket:
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        address = socket_at(self._directory, SOCKET_NAME)
        try:
            try:
                if not stat.S_ISSOCK(os.lstat(address).st_mode):
                    raise BrokerError(
                        f"{self._state / SOCKET_NAME} is not a socket", hint="move it away"
                    )
                os.unlink(address)  # left by a broker that was killed
            except FileNotFoundError:
                pass
            listener.bind(address)
            os.chmod(address, 0o600)
            listener.listen(64)
        except OSError as problem:
            listener.close()
            raise BrokerError(
                f"cannot listen on {self._state / SOCKET_NAME}: {problem.strerror}"
            ) from problem
        return listener

    # ---- the loop

    def run(self) -> None:
        """Serve until there is nothing left to do, then close the journal."""
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, self._stop)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        try:
            self._journal = Journal.open(self._state / "journal")
        except SafeclawError as problem:
            self._fault = problem
        except OSError as problem:
            self._fault = JournalError(
                f"the journal in {self._state / 'journal'} cannot be opened: {problem.strerror}"
            )
        committer = threading.Thread(target=self._commit, name="commit", daemon=True)
        committer.start()
        served = False
        while True:
            for key, events in self._selector.select(self._timeout(served)):
                if key.fileobj is self._listener:
                    self._accept()
                    served = True
                elif key.fd == self._woken:
                    os.read(self._woken, 4096)
                else:
                    self._serve(self._sessions[key.fd], events)
            self._acknowledge()
            self._tick()
            if self._stopping:
                for session in list(self._sessions.values()):
                    self._refuse(session, "the broker is being stopped")
                self._finish(committer)
                return
            if served and not self._stay and not self._sessions and self._retire(committer):
                return

    def _timeout(self, served: bool) -> float | None:
        if served and not self._stay and not self._sessions:
            return _IDLE_RETRY
        if self._next_tick is not None:
            return max(0.0, self._next_tick - time.monotonic())
        return None

    def _stop(self, *_: object) -> None:
        self._stopping = True

    def _accept(self) -> None:
        while True:
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:
                return  # out of descriptors: the others go on, this one gets no answer
            pid, uid, _gid = peer_credentials(sock)
            if uid != os.geteuid():
                sock.close()
                continue
            sock.setblocking(True)
            channel = Channel(sock, message_max=protocol.MESSAGE_MAX)
            session = Session(channel, pid=pid, uid=uid)
            self._sessions[sock.fileno()] = session
            self._selector.register(sock, selectors.EVENT_READ, session)

    def _serve(self, session: Session, events: int) -> None:
        channel = session.channel
        try:
            if events & selectors.EVENT_WRITE and channel.push():
                self._watch(session)
            if not events & selectors.EVENT_READ:
                return
            for _ in range(_TURN):
                data = channel.take()
                if data is None:
                    break
                if not data:
                    self._gone(session)
                    return
                self._take(session, data)
                if channel.fileno() < 0:
                    return
        except JournalFaultError as problem:
            self._fail(problem)
        except BrokerError as problem:
            self._refuse(session, problem.message)
        except OSError:
            self._gone(session)
        self._note_appended(session)

    # ---- what supervisors say

    def _take(self, session: Session, data: bytes) -> None:
        if session.id is not None:
            split = protocol.split_decided(data)
            if split is not None:
                number, pid, latency, tail = split
                if self._fault is None and self._in_order(session, number):
                    self._append(session.decision(number, pid, latency, tail))
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
                if self._fault is None:
                    self._post(session, protocol.Granted(at))
            case protocol.Flush():
                session.flush = True
            case protocol.End(reason, status):
                self._end(session, reason, status)
            case protocol.Started(number, _):
                if self._fault is None and self._in_order(session, number):
                    self._append(session.start(message))
            case protocol.Violated(number):
                if self._fault is None and self._in_order(session, number):
                    self._append(session.violation(message))
            case protocol.Decided():
                raise BrokerError("a decision in another than its one encoding")

    def _open(self, session: Session, hello: protocol.Hello) -> None:
        if hello.version != protocol.VERSION:
            raise BrokerError(
                f"the supervisor speaks version {hello.version}, this broker "
                f"{protocol.VERSION}: end the other sessions first"
            )
        if self._fault is not None or self._journal is None:
            self._deny(session, self._fault or BrokerError("the broker is not ready"))
            return
        from safeclaw.policies import loader

        try:
            policy = loader.load(hello.policy_text, name=hello.policy_name)
        except SafeclawError as problem:
            self._deny(session, problem)
            return
        session.open(hello, policy)
        if hello.resume is not None:
            session.resume(hello.resume, self._state / "journal")
        else:
            self._append(
                Entry(
                    type=RecordType.POLICY_LOAD,
                    session=session.id,
                    agent=session.agent,
                    uid=session.uid,
                    policy=PolicyRef(policy.name, policy.sha256, policy.version),
                    detail={"rules": len(policy.rules)},
                )
            )
        assert session.id is not None
        lease = protocol.Lease(
            session.id, policy, (str(self._state),), self._journal.chain_id, os.getpid()
        )
        self._post(session, lease)

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
        if self._fault is None and not session.ended:
            self._append(session.end(reason, status))
        session.ended = True
        session.ending = True

    def _gone(self, session: Session) -> None:
        """The supervisor has closed its end, or was killed."""
        if session.id is not None and not session.ended and self._fault is None:
            try:
                self._append(session.end("the supervisor has gone", None))
            except JournalFaultError as problem:
                self._fail(problem)
        self._note_appended(session)
        self._drop(session)

    # ---- the journal

    def _append(self, entry: Entry) -> None:
        assert self._journal is not None
        self._appended = self._journal.append(entry)

    def _note_appended(self, session: Session) -> None:
        """Remember how far this session's records reach, and have them written."""
        if session.number > session.marked or session.ending or session.flush:
            session.marked = session.number
            session.marks.append((self._appended, session.number))
        with self._work:
            if self._durable < self._appended:
                self._work.notify()

    def _commit(self) -> None:
        """Make durable what was appended, over and over; the second thread."""
        journal = self._journal
        if journal is None:
            return
        while True:
            with self._work:
                self._work.wait_for(lambda: self._durable < self._appended or self._closing)
                if self._closing:
                    return
            try:
                durable = journal.commit()
            except JournalError as problem:
                with self._work:
                    self._commit_fault = problem
                os.write(self._wake, b"f")
                return
            with self._work:
                self._durable = durable
            try:
                os.write(self._wake, b"c")
            except BlockingIOError:
                pass  # the loop is awake anyway

    def _acknowledge(self) -> None:
        """Tell the sessions how far their records are on disk."""
        with self._work:
            durable = self._durable
            problem = self._commit_fault
        if problem is not None and self._fault is None:
            self._fail(problem)
        for session in list(self._sessions.values()):
            number = session.durable
            marks: collections.deque[tuple[int, int]] = session.marks
            while marks and marks[0][0] <= durable:
                number = marks.popleft()[1]
            if session.ending and (self._fault is not None or not marks):
                self._conclude(session, number)
                continue
            session.durable = number
            if session.wants_acknowledgement():
                session.acknowledged = number
                if not marks:
                    session.flush = False
                self._post(session, protocol.Ack(number))

    def _conclude(self, session: Session, number: int) -> None:
        """Confirm the end of a session, once it is on disk."""
        if self._fault is None:
            self._post(session, protocol.Ack(number))
            self._post(session, protocol.Ended())
        session.ending = False
        session.concluded = True
        if not session.channel.posted:
            self._leave(session)

    def _leave(self, session: Session) -> None:
        """Let go of an ended session; of the last one only once the journal is closed."""
        if len(self._sessions) > 1 or self._stay:
            self._drop(session)

    def _fail(self, problem: JournalError) -> None:
        """Allow nothing any more; tell every session why."""
        if self._fault is not None:
            return
        self._fault = problem
        for session in list(self._sessions.values()):
            self._post(session, protocol.Fault(problem.message))

    def _tick(self) -> None:
        """Let the journal write its checkpoint while it is dirty, each second."""
        if self._journal is None or self._fault is not None:
            self._next_tick = None
            return
        now = time.monotonic()
        if self._next_tick is None:
            if self._durable < self._appended:
                self._next_tick = now + _TICK
            return
        if now < self._next_tick:
            return
        try:
            self._journal.tick()
        except JournalError as problem:
            self._fail(problem)
        self._next_tick = now + _TICK if self._durable < self._appended else None

    # ---- sockets

    def _post(self, session: Session, message: protocol.ToSupervisor) -> None:
        try:
            if not session.channel.post(protocol.encode(message)):
                self._watch(session)
        except OSError:
            pass  # its end of file is on the way

    def _watch(self, session: Session) -> None:
        events = selectors.EVENT_READ
        if session.channel.posted:
            events |= selectors.EVENT_WRITE
        self._selector.modify(session.channel.sock, events, session)

    def _deny(self, session: Session, problem: SafeclawError) -> None:
        """Refuse to open a session."""
        self._post(session, protocol.Refused(problem.message, problem.hint))
        self._drop(session)

    def _refuse(self, session: Session, reason: str) -> None:
        """End a session that broke the rules, or that cannot go on."""
        if session.id is not None and not session.ended and self._fault is None:
            try:
                self._append(session.end(f"ended by the broker: {reason}", None))
            except JournalFaultError as problem:
                self._fail(problem)
        self._post(session, protocol.Refused(reason))
        self._drop(session)

    def _drop(self, session: Session) -> None:
        number = session.channel.fileno()
        if number < 0:
            return
        del self._sessions[number]
        self._selector.unregister(session.channel.sock)
        session.channel.close()

    # ---- the end

    def _retire(self, committer: threading.Thread) -> bool:
        """Stop if nobody is about to connect; False when somebody is."""
        lock = os.open(self._state / LOCK_NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            self._accept()
            if self._sessions:
                return False
            # Still under the lock: whoever starts the next broker finds the journal free.
            self._finish(committer)
            return True
        finally:
            os.close(lock)

    def _finish(self, committer: threading.Thread) -> None:
        try:
            os.unlink(socket_at(self._directory, SOCKET_NAME))
        except OSError:
            pass  # somebody was quicker; the lock and the journal decide, not the name
        self._listener.close()
        with self._work:
            self._closing = True
            self._work.notify()
        committer.join()
        if self._journal is not None:
            try:
                self._journal.close()
            except SafeclawError as problem:
                self._fault = self._fault or problem
