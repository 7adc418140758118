"""Questions to people in a running broker: put, answered, recorded, and expired.

It belongs to the broker's main thread.  What waits and what was granted is kept in
:class:`~safeclaw.daemon.approvals.Approvals`; here it meets sessions, people and the journal.
"""

from __future__ import annotations

import time

import msgspec

from safeclaw.daemon import control, hooks, protocol
from safeclaw.daemon.approvals import LENGTH_MAX, Approvals, Asker, Grant, Question, Scope, new_name
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.peer import Access, Peer, Role, user_name
from safeclaw.daemon.services import Services, session_of
from safeclaw.daemon.sessions import Session, check_fingerprint
from safeclaw.daemon.settings import Settings
from safeclaw.errors import BrokerError
from safeclaw.policies.model import Decision, printable


class Questions:
    """See the module."""

    def __init__(self, access: Access, settings: Settings, services: Services) -> None:
        self.approvals = Approvals()
        self._access = access
        self._settings = settings
        self._services = services

    # ---- asking and answering

    def ask(self, session: Session, message: protocol.Ask) -> None:
        """Answer from a grant, or put the question before people."""
        now = time.time()
        assert session.id is not None
        assert session.agent is not None
        # SAFETY: a person answers to what is shown; the grant holds for the fingerprint.
        check_fingerprint(message.action, message.target, message.fingerprint)
        asker = Asker(
            session.id, session.uid, session.agent, session.policy_sha256, session.registered
        )
        grant = self.approvals.granted(asker, message.fingerprint, now)
        question = self.approvals.same(asker, message.fingerprint)
        full = grant is None and self.approvals.full(asker, joining=question is not None)
        if grant is None and question is not None and not full:
            self.approvals.ask(question, message.ticket)
            asked = protocol.Asked(message.ticket, question.id, max(0.0, question.until - now))
            self._services.post(session, asked)
            return
        question = Question(
            id=new_name(self.approvals) if grant is None else grant.id,
            asker=asker,
            action=message.action,
            target=message.target,
            fingerprint=message.fingerprint,
            rule=message.rule,
            reason=message.reason,
            exe=message.exe,
            pid=message.pid,
            asked=now,
            until=now + self._settings.approval_timeout,
            registered=session.registered,
        )
        if grant is not None:
            self._record(question, "used", by=grant.by, detail={"scope": grant.scope.value})
            self._answer(session, question, [message.ticket], grant, "")
            return
        why = "too many questions wait already" if full else _too_long(question)
        if why:
            self._record(question, "refused", reason=why)
            self._answer(session, question, [message.ticket], None, why)
            return
        self._put(session, question, [message.ticket])

    def _put(self, session: Session, question: Question, tickets: list[int]) -> None:
        """Put a question before people, for the attempts that wait for it."""
        # In this order: what cannot be recorded is not asked.
        self._record(question, "asked", detail={"seconds": int(self._settings.approval_timeout)})
        for ticket in tickets:
            self.approvals.ask(question, ticket)
            asked = protocol.Asked(ticket, question.id, self._settings.approval_timeout)
            self._services.post(session, asked)
        about = shown(question, question.asked, len(tickets))
        problem = hooks.spawn(self._settings.approval_hook, about, whose=session.uid)
        if problem is not None:
            self._record(question, "hook-failed", reason=printable(problem))

    def withdraw(self, session: Session, ticket: int) -> None:
        """Take in that nobody waits any more."""
        if session.id is not None:
            for question in self.approvals.withdraw(session.id, ticket):
                self._record(question, "withdrawn", reason="nobody waits for it any more")

    def settle(self, peer: Peer, request: control.Approve | control.Refuse) -> None:
        """Take in a person's answer.  BrokerError."""
        question = self.approvals.find(request.id)
        if question is None or not self.may_answer(peer, question):
            raise BrokerError(
                f"no question is called {printable(request.id)}", hint="safeclaw approvals"
            )
        now = time.time()
        grant = None
        detail: dict[str, object] = {}
        if isinstance(request, control.Approve):
            try:
                scope = Scope(request.scope)
            except ValueError:
                raise BrokerError(
                    f"no such scope: {request.scope}", hint="there are once, session and time"
                ) from None
            if (scope is Scope.TIME) != (request.seconds > 0):
                raise BrokerError(
                    "an approval for a time needs the number of seconds, above 0",
                    hint="such as --for 30m",
                )
            until = now + request.seconds if scope is Scope.TIME else None
            grant = Grant(question.id, scope, question.asker, question.fingerprint, until, peer.uid)
            detail = {"scope": scope.value}
            if request.seconds:
                detail["seconds"] = request.seconds
        tickets, left = self.approvals.settle(question, grant), list[int]()
        if grant is not None and grant.scope is Scope.ONCE:
            # SAFETY: more may have come since somebody looked how many wait.
            tickets, left = tickets[:1], tickets[1:]
        detail["tickets"] = len(tickets)
        event = "refused" if grant is None else "approved"
        self._record(
            question, event, by=peer.uid, reason=printable(request.why) or None, detail=detail
        )
        session = session_of(self._services, question.asker.session)
        if session is not None:
            self._answer(session, question, tickets, grant, request.why or "", by=peer.uid)
            if left:
                self._put(session, self._again(question), left)

    def _again(self, question: Question) -> Question:
        """Return the same question anew, for who still waits."""
        now = time.time()
        until = now + self._settings.approval_timeout
        name = new_name(self.approvals)
        return msgspec.structs.replace(question, id=name, asked=now, until=until)

    def may_answer(self, peer: Peer, question: Question) -> bool:
        """Whether a person may see and answer a question.

        SAFETY: for a registered agent only an administrator: its own user must not be the
        one who says yes.
        """
        roles = self._access.roles(peer)
        if Role.ADMIN in roles:
            return True
        return Role.RUN in roles and peer.uid == question.asker.uid and not question.registered

    def _answer(
        self,
        session: Session,
        question: Question,
        tickets: list[int],
        grant: Grant | None,
        why: str,
        by: int | None = None,
    ) -> None:
        if grant is not None:
            reason = f"approved by {user_name(grant.by)} ({grant.scope}, {question.id})"
            decision = Decision.ALLOW
            session.answered[question.fingerprint] += len(tickets)
        else:
            who = f"refused by {user_name(by)}" if by is not None else "not approved"
            reason = f"{who} ({question.id})"
            decision = Decision.DENY
        if why:
            reason += f": {printable(why)}"
        for ticket in tickets:
            self._services.post_durable(session, protocol.Answer(ticket, decision, reason))

    def _record(
        self,
        question: Question,
        event: str,
        *,
        by: int | None = None,
        reason: str | None = None,
        detail: dict[str, object] | None = None,
    ) -> None:
        more = {"approval": question.id, "event": event, **(detail or {})}
        if by is not None:
            more["by"] = by
        self._services.append(
            Entry(
                type=RecordType.APPROVAL,
                session=question.asker.session,
                agent=question.asker.agent,
                uid=question.asker.uid,
                pid=question.pid,
                exe=question.exe,
                action=question.action,
                target=question.target,
                fingerprint=question.fingerprint,
                rule=question.rule,
                reason=reason,
                detail=more,
            )
        )

    # ---- time

    def tick(self, now: float) -> None:
        """Refuse what nobody has answered in time."""
        for question in self.approvals.expired(now):
            tickets = self.approvals.settle(question, None)
            self._record(question, "expired", detail={"tickets": len(tickets)})
            session = session_of(self._services, question.asker.session)
            if session is not None:
                self._answer(session, question, tickets, None, "nobody answered in time")

    def next_tick(self) -> float | None:
        """Return when :meth:`tick` has something to do, in seconds since the epoch."""
        return self.approvals.next_expiry()

    # ---- what makes a question void

    def ended(self, session: Session) -> None:
        """Forget what only a session needed that has ended."""
        assert session.id is not None
        for question in self.approvals.withdraw(session.id, None):
            self._record(question, "withdrawn", reason="the session has ended")
        self.approvals.forget_session(session.id)

    def replaced(self, session: Session) -> None:
        """Take in that a session was given another policy.

        What waits for a yes under the old one is decided anew by the supervisor, under the
        new one; it may have to ask again.
        """
        for question in self.approvals.pending:
            if question.asker.session == session.id:
                tickets = self.approvals.settle(question, None)
                reason = "another policy is in force"
                self._record(question, "withdrawn", reason=reason)
                self._answer(session, question, tickets, None, reason)


def _too_long(question: Question) -> str:
    words = (question.exe, question.rule, question.reason, question.action)
    size = len(msgspec.json.encode(question.target)) + sum(map(len, words))
    if size <= LENGTH_MAX:
        return ""
    return f"it is {size} characters long, and nobody is asked more than {LENGTH_MAX}"


def shown(question: Question, now: float, waiting: int = 1) -> dict[str, object]:
    """Return a question as people and hooks see it."""
    return {
        "approval": question.id,
        "session": question.asker.session,
        "agent": question.asker.agent,
        "uid": question.asker.uid,
        "action": question.action,
        "target": question.target,
        "fingerprint": question.fingerprint,
        "rule": question.rule,
        "reason": question.reason,
        "exe": question.exe,
        "pid": question.pid,
        "waiting": waiting,
        "waiting_seconds": int(now - question.asked),
        "left_seconds": max(0, int(question.until - now)),
    }
