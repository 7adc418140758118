"""The broker's desk: everything it does for people rather than for supervisors.

It belongs to the broker's main thread.  It answers requests once what they changed is
on disk (and once the sessions they stop have ended), gives the authority its hands, and
has the policies read again, in a thread, when their files change.
"""

from __future__ import annotations

import contextlib
import os
import queue
import signal
import time
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import msgspec

from safeclaw.daemon import control, protocol
from safeclaw.daemon.alerts import Alerts
from safeclaw.daemon.authority import Authority
from safeclaw.daemon.health import Health, Snapshot, Standing
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.ledger import Position
from safeclaw.daemon.lookout import Lookout
from safeclaw.daemon.peer import Access, Peer, Role
from safeclaw.daemon.readers import Readers
from safeclaw.daemon.requests import Requests
from safeclaw.daemon.service import Service
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError, SafeclawError
from safeclaw.policies.model import printable

if TYPE_CHECKING:
    from safeclaw.daemon.metrics import Metrics

#: How long a supervisor may take to end what it was told to kill, before it is killed too.
_KILL_PATIENCE = 1.0
#: How long it may take until the last use of a key is on disk.
_USES_EVERY = 60.0
#: How long a request waits for sessions to end.
_ENDING_PATIENCE = 10.0


class House(Protocol):
    """The broker, as far as its desk needs it."""

    @property
    def fault(self) -> SafeclawError | None:
        """Why nothing is allowed any more."""
        ...

    @property
    def position(self) -> Position:
        """Where the journal stands."""
        ...

    @property
    def standing(self) -> Standing:
        """Where the journal and its copy stand."""
        ...

    def sessions(self) -> list[Session]:
        """Return the sessions that run."""
        ...

    def append_urgent(self, entry: Entry) -> None:
        """Append a record, and have it on disk soon; nothing is raised."""
        ...

    def send(self, session: Session, message: bytes) -> None:
        """Send a message now."""
        ...

    def heavy(self, session: Session, more: int) -> bool:
        """Whether so many bytes more are too many for a session's user."""
        ...

    def expel(self, session: Session, reason: str) -> None:
        """End a session that does not end itself."""
        ...

    def hurry(self) -> None:
        """Have what is appended on disk soon."""
        ...

    def wake(self) -> None:
        """Have the loop turn, from any thread."""
        ...


class _Later(msgspec.Struct, frozen=True):
    """What is to be said, and what it waits for."""

    sequence: int
    session: Session
    message: bytes
    sessions: tuple[Session, ...]
    until: float
    #: It confirms what was changed, and is said to nobody where that is not on disk.
    confirms: bool = False


class Desk:
    """See the module."""

    def __init__(self, state: Path, service: Service, house: House) -> None:
        self._state = state
        self._service = service
        self._house = house
        access = Access(os.geteuid(), service.groups)
        self.authority = Authority(state, access, service.settings, self, service.configuration)
        self._requests = Requests(self.authority, self, self.snapshot)
        alerts = Alerts(
            service.settings.alert_hook, lambda: house.position.chain, self._hook_failed
        )
        self.health = Health(alerts, service.settings.alert_denials)
        self._later: list[_Later] = []
        self.lookout = Lookout(self.authority, state / "journal", house.wake)
        self._readers = Readers(state / "journal")
        #: Threads that wait to be told how the broker is.
        self._wanted: queue.SimpleQueue[queue.SimpleQueue[Snapshot]] = queue.SimpleQueue()
        self._metrics: Metrics | None = None
        self._began = time.time()
        self._flushed = time.monotonic()

    @property
    def system(self) -> bool:
        """Whether several users share this broker."""
        return self.authority.access.system

    # ---- requests

    def answer(self, session: Session, data: bytes) -> None:
        """Answer a request, once what it has changed is on disk."""
        sessions: tuple[Session, ...] = ()
        confirms = False
        try:
            request = control.decode(data)
            # what is to be recorded cannot be: only looking, and stopping, go on
            looks = control.Status | control.Sessions | control.Records | control.Kill
            confirms = not isinstance(request, looks)
            if confirms and self._house.fault is not None:
                raise self._house.fault
            outcome = self._requests.handle(session.peer, request)
            if confirms and self._house.fault is not None:
                raise _unrecorded(self._house.fault)
            if outcome.looks:
                self.lookout.look(session)
                return
            if outcome.reads_everything is not None and isinstance(request, control.Records):
                everything = outcome.reads_everything
                self._readers.start(session, request, everything=everything)
                return
            reply, sessions = control.encode(control.Reply(outcome.data)), outcome.sessions
            if self._house.heavy(session, len(reply)):
                raise BrokerError(
                    "too many answers to this user are not read yet",
                    hint="end the commands that wait, then try again",
                )
        except SafeclawError as problem:
            reply = control.encode(control.Reply(error=problem.message, hint=problem.hint))
        self._say_later(session, reply, sessions, confirms=confirms)

    def _say_later(
        self,
        session: Session,
        message: bytes,
        sessions: tuple[Session, ...] = (),
        *,
        confirms: bool = False,
    ) -> None:
        until = time.monotonic() + _ENDING_PATIENCE
        head = self._house.position.head
        self._later.append(_Later(head, session, message, sessions, until, confirms))
        session.owed += len(message)
        self._house.hurry()

    def settle(self, durable: int) -> None:
        """Send what has waited for the disk, or for sessions to end."""
        if not self._later:
            return
        now = time.monotonic()
        asked, self._later = self._later, []
        waiting: list[_Later] = []
        for later in asked:
            left = [one for one in later.sessions if not one.concluded and not one.dropped]
            for session in left:
                if session.killed is not None and now - session.killed >= _KILL_PATIENCE:
                    _kill_supervisor(session)
            if now >= later.until:
                for session in left:
                    self._house.expel(session, "it did not stop when it was told to")
            on_disk = later.sequence <= durable or self._house.fault is not None
            gone = later.session.dropped and not later.sessions
            if gone or (on_disk and (not left or now >= later.until)):
                later.session.owed -= len(later.message)
                message = _not_stopped(left) if left else later.message
                if later.confirms and later.sequence > durable and self._house.fault is not None:
                    problem = _unrecorded(self._house.fault)
                    message = control.encode(
                        control.Reply(error=problem.message, hint=problem.hint)
                    )
                self._house.send(later.session, message)
            else:
                waiting.append(later)
        self._later[:0] = waiting

    # ---- what an authority needs of its broker

    def append(self, entry: Entry) -> None:
        """Append a record for the authority; a fault is the whole broker's."""
        self._house.append_urgent(entry)

    def sessions(self) -> Iterable[Session]:
        """Return the sessions that run."""
        return self._house.sessions()

    def post(self, session: Session, message: protocol.ToSupervisor) -> None:
        """Send a message now."""
        self._house.send(session, protocol.encode(message))

    def post_durable(self, session: Session, message: protocol.ToSupervisor) -> None:
        """Send a message once all that is appended is on disk."""
        self._say_later(session, protocol.encode(message))

    # ---- metrics

    def serve_metrics(self) -> None:
        """Begin to serve metrics where the service has somewhere to."""
        if self._service.metrics:
            from safeclaw.daemon.metrics import Metrics

            self._metrics = Metrics(
                self._service.metrics, self._snapshot_soon, self._may_measure, self._house.wake
            )

    def _may_measure(self, peer: Peer) -> bool:
        return bool(self.authority.access.roles(peer) & {Role.ADMIN, Role.AUDIT})

    def _snapshot_soon(self, patience: float) -> Snapshot | None:
        """Return what is true now, from any thread; None when the loop does not turn."""
        answer: queue.SimpleQueue[Snapshot] = queue.SimpleQueue()
        self._wanted.put(answer)
        self._house.wake()
        try:
            return answer.get(timeout=patience)
        except queue.Empty:
            return None

    # ---- time

    def tick(self) -> None:
        """Take in what the policies' thread has found, and expire what is due."""
        for session in self.lookout.tick():
            reply = control.Reply(self.authority.policies.told())
            self._say_later(session, control.encode(reply))
            # it goes out in the loop's next turn: where nothing is new, no commit would have one
            self._house.wake()
        for session in self._readers.reap():
            reply = control.Reply(error="the reading was broken off", hint="try again")
            self._house.send(session, control.encode(reply))
        self.authority.questions.tick(time.time())
        self.authority.refusals.tick()
        if time.monotonic() - self._flushed >= _USES_EVERY:
            self.flush()
        self.health.tick(self._house.sessions())
        while not self._wanted.empty():
            self._wanted.get().put(self.snapshot())
        while self._metrics is not None and not self._metrics.refused.empty():
            peer = self._metrics.refused.get()
            self.authority.refused(
                peer, "control.metrics", {"what": "metrics"}, "this needs the role audit"
            )

    def next_tick(self) -> float | None:
        """Return in how many seconds something is due; None for never."""
        waits: list[float] = []
        for soon in (self.health.next_tick(), self.authority.refusals.next_tick()):
            if soon is not None:
                waits.append(soon)
        due = self.authority.questions.next_tick()
        if due is not None:
            waits.append(max(0.0, due - time.time()))
        if self.authority.registry.unwritten:
            waits.append(max(0.0, self._flushed + _USES_EVERY - time.monotonic()))
        if any(later.sessions for later in self._later):
            waits.append(_KILL_PATIENCE)
        return min(waits, default=None)

    def close(self) -> None:
        """Write what was only counted or remembered until now."""
        self.authority.refusals.close()
        self.flush()

    def flush(self) -> None:
        """Write when keys were last used; a full disk costs only that."""
        self._flushed = time.monotonic()
        with contextlib.suppress(BrokerError):
            self.authority.registry.flush()

    # ---- what it says of the broker

    def left(self, session: Session) -> None:
        """Take in that a session has ended; a second time changes nothing."""
        self.authority.ended(session)
        self.health.left(session)

    def snapshot(self) -> Snapshot:
        """Return what is true now."""
        fault = self._trouble()
        running = self._house.sessions()
        decisions, denials = self.health.decisions(running)
        orders = 0
        with contextlib.suppress(BrokerError):  # damaged: that is the fault which is told
            orders = len(self.authority.switch.switches)
        registry = self.authority.registry
        agents = [agent for agent in registry.agents if agent.removed is None]
        old = registry.now() - self.authority.settings.key_rotation_days * 86400
        return Snapshot(
            pid=os.getpid(),
            uid=os.geteuid(),
            state=str(self._state),
            since=int(self._began),
            uptime=self.health.uptime,
            standing=self._house.standing,
            fault=fault.message if fault is not None else None,
            sessions=len(running),
            approvals=len(self.authority.questions.approvals.pending),
            kill_orders=orders,
            agents=len(agents),
            keys_due=tuple(agent.name for agent in agents if agent.newest <= old),
            policies=self.authority.policies.hashes(),
            policies_waiting=self.authority.policies.waiting(),
            policy_problems=self.authority.policies.problems(),
            decisions_total=decisions,
            denials_total=denials,
            refusals_total=self.health.refusals,
            records_total=self.health.records,
            alerts=self.health.alerts.tally,
        )

    def _hook_failed(self, problem: str) -> None:
        """Say that nobody was told: in the journal, and on standard error."""
        reason = printable(f"a hook failed: {problem}")
        with contextlib.suppress(OSError):
            os.write(2, f"safeclawd: {reason}\n".encode())
        self._house.append_urgent(
            Entry(type=RecordType.FAULT, reason=reason, detail={"part": "hook"})
        )

    def _trouble(self) -> SafeclawError | None:
        """Return why no session may begin or go on."""
        if self._house.fault is not None:
            return self._house.fault
        try:
            _ = self.authority.switch.switches
        except BrokerError as problem:
            return problem
        return None

    def told(self) -> str:
        """Return one line for ``systemctl status``."""
        fault = self._trouble()
        if fault is not None:
            return f"FAULT, nothing is allowed: {fault.message}"
        running = self._house.sessions()
        decisions, denials = self.health.decisions(running)
        text = f"{len(running)} sessions, {decisions} decisions ({denials} denials)"
        pending = len(self.authority.questions.approvals.pending)
        text += f", {pending} questions wait" if pending else ""
        orders = len(self.authority.switch.switches)
        text += f", {orders} kill orders" if orders else ""
        return f"{text}; records on disk up to {self._house.position.durable}"


def _unrecorded(fault: SafeclawError) -> BrokerError:
    return BrokerError(
        f"not recorded, and perhaps done all the same: {fault.message}",
        hint="see to the disk, restart the broker, and look whether it was done",
    )


def _not_stopped(left: list[Session]) -> bytes:
    """Return the answer that says who is not known to have stopped."""
    names = ", ".join(f"{one.agent} (pid {one.pid}, uid {one.uid})" for one in left)
    return control.encode(
        control.Reply(
            error=f"not known to have stopped: {names}",
            hint="they may do nothing any more; to end them, as root: kill -9 those pids",
        )
    )


def _kill_supervisor(session: Session) -> None:
    """Kill a supervisor that did not end its agent: the kernel then does (PR_SET_PDEATHSIG)."""
    session.killed = None
    # SAFETY: by what was held since it connected: it may have left its socket to a child, and
    # its number to somebody else.
    if session.process is not None:
        with contextlib.suppress(OSError):
            signal.pidfd_send_signal(session.process, signal.SIGKILL)
