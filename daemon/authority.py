"""What the broker decides about sessions, besides their records: who, under what, until when.

It belongs to the broker and runs in its main thread.  It holds the registry, the kill
switch, the questions to people and the policies in force; it owns no socket: what is to be
sent or recorded goes through the :class:`Services` of the broker.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Generator
from pathlib import Path

from safeclaw.daemon import control, protocol
from safeclaw.daemon.archive import Found
from safeclaw.daemon.changes import Change
from safeclaw.daemon.hands import Hands
from safeclaw.daemon.inforce import InForce
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.killswitch import KillSwitch, Switch
from safeclaw.daemon.opening import Opening
from safeclaw.daemon.peer import Access, Peer, Role, user_name
from safeclaw.daemon.questions import Questions
from safeclaw.daemon.refusals import Refusals
from safeclaw.daemon.registry import Registry
from safeclaw.daemon.services import Services, session_of
from safeclaw.daemon.sessions import Session
from safeclaw.daemon.settings import Settings
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies.document import Mode, Policy
from safeclaw.policies.model import Decision, printable

#: How many orders of the kill switch one user may have for sessions of their own.
_ORDERS_MAX = 64
#: How much of what somebody said who is refused is recorded, in characters.
_REFUSED_TEXT_MAX = 1024


class Authority:
    """See the module.  ``system`` files (registry, kill switch) are in the state directory."""

    def __init__(
        self,
        state: Path,
        access: Access,
        settings: Settings,
        services: Services,
        configuration: Path,
    ) -> None:
        self.access = access
        self.settings = settings
        self.registry = Registry(state, time.time)
        self.switch = KillSwitch(state)
        self.questions = Questions(access, settings, services)
        hands = Hands(settings.groups.admin) if access.system else None
        self.policies = InForce(
            state, configuration / "policies", time.time, hands, rule=settings.require_approval
        )
        self._state = state
        self._services = services
        self.refusals = Refusals(services.append)

    def load(self) -> None:
        """Read what is on file, and record what has changed; BrokerError for what is damaged."""
        self.registry.load()
        _ = self.switch.switches
        agents = self.registry.agents
        self.policies.load(frozenset(one.policy for one in agents if one.removed is None))
        self.changed()

    # ---- sessions

    def brings_policy(self, peer: Peer, hello: protocol.Hello) -> bool:
        """Whether a session's policy is the one it brings, and is to be read first.

        BrokerError, after recording the refusal, for who may not run any: nothing of theirs is
        read.
        """
        with self._recorded(peer, hello):
            self._may_run(peer)
        return self._is_free(hello)

    def open(self, peer: Peer, hello: protocol.Hello, policy: Policy | None) -> Opening:
        """Return what a session may open with.  SafeclawError, after recording the refusal.

        ``policy`` is the one it has brought, if :meth:`brings_policy`.
        """
        with self._recorded(peer, hello):
            self._may_run(peer)
            opening = self._opening(peer, hello, policy)
            order = self.switch.against(peer.uid, opening.agent)
            if order is not None:
                raise BrokerError(
                    f"the kill switch is on: {order}",
                    hint=f"safeclaw resume {order.agent or '--all'}",
                )
            return opening

    @contextlib.contextmanager
    def _recorded(self, peer: Peer, hello: protocol.Hello) -> Generator[None]:
        """Record that a session is refused."""
        try:
            yield
        except BrokerError as problem:
            what = {"what": f"{hello.agent}: {' '.join(hello.command)}"}
            self.refused(peer, "session.start", what, problem.message, agent=hello.agent)
            raise

    def _is_free(self, hello: protocol.Hello) -> bool:
        """Whether it is no registered agent, nor says that it is one."""
        return self.registry.find(hello.agent) is None and not hello.credential

    def _may_run(self, peer: Peer) -> None:
        if Role.RUN in self.access.roles(peer):
            return
        raise BrokerError(
            f"{user_name(peer.uid)} may not start sessions with the system's broker",
            hint=f"as root: usermod -aG {self.settings.groups.run} {user_name(peer.uid)}; or "
            "safeclaw run --broker embedded, with a journal of one's own",
        )

    def _opening(self, peer: Peer, hello: protocol.Hello, policy: Policy | None) -> Opening:
        if policy is not None and self._is_free(hello):
            return Opening(hello.agent, policy)
        # SAFETY: a session that only calls itself like a registered agent would stand in the
        # record as that agent.
        known, key = self.registry.authenticate(hello.agent, hello.credential, peer.uid)
        if hello.policy_text:
            raise BrokerError(
                f"{known.name} is registered: its policy is {known.policy}, and no other",
                hint=f"without --policy, or safeclaw agent set-policy {known.name} POLICY",
            )
        found = self.policy(known.policy)
        if hello.observe and found.policy.mode is not Mode.OBSERVE:
            # SAFETY: else who runs it would decide whether its policy binds.
            raise BrokerError(
                f"{known.name} is registered: whether it is only observed says its policy",
                hint="without --observe, or with mode: observe in its policy",
            )
        return Opening(known.name, found.policy, found.files, registered=True, key=key.id)

    def began(self, session: Session) -> None:
        """Note that a session has begun: on which key, and when."""
        if session.registered and session.agent is not None and session.id is not None:
            self.registry.used(session.agent, session.key, session.id)

    def ended(self, session: Session) -> None:
        """Forget what only the session needed."""
        if session.id is not None:
            self.questions.ended(session)

    # ---- refusals

    def refused(
        self,
        peer: Peer,
        action: str,
        target: protocol.JsonObject,
        reason: str,
        *,
        agent: str | None = None,
    ) -> None:
        """Record that somebody was refused; a flood of it is only counted."""
        self.refusals.add(
            peer.uid,
            Entry(
                type=RecordType.DECISION,
                agent=None if agent is None else str(_text(agent)),
                uid=peer.uid,
                pid=peer.pid,
                action=action,
                target={name: _text(value) for name, value in target.items()},
                decision=Decision.DENY.value,
                rule="access-control",
                reason=str(_text(reason)),
                enforced_by="broker",
            ),
        )

    # ---- the kill switch

    def kill(self, peer: Peer, request: control.Kill) -> list[Session]:
        """Throw the switch; return the sessions that are being stopped.  BrokerError."""
        single = session_of(self._services, request.agent or "")
        everybody = Role.ADMIN in self.access.roles(peer)
        uid = None if everybody else peer.uid
        if single is not None and (everybody or single.uid == peer.uid):
            hit = [single]
        else:
            # SAFETY: they are on file, and read whole.  Who has them all still stops all at once.
            own = [one.agent for one in self.switch.switches if one.uid == peer.uid]
            known = request.agent is None or request.agent in own
            if not everybody and not known and len(own) >= _ORDERS_MAX:
                raise BrokerError(
                    f"{len(own)} orders of {user_name(peer.uid)} stand already",
                    hint="safeclaw kill --all, or the session's id; safeclaw resume lifts orders",
                )
            order = Switch(_now(), peer.uid, printable(request.why), uid, request.agent)
            # SAFETY: on disk before anybody is stopped: what comes up meanwhile finds it.
            self.switch.add(order)
            hit = [
                session
                for session in self._services.sessions()
                if session.agent is not None and order.holds(session.uid, session.agent)
            ]
        why = f": {printable(request.why)}" if request.why else ""
        for session in hit:
            reason = f"stopped by {user_name(peer.uid)}{why}"
            self.stop(session, reason)
        self._order(peer, "stop", request.agent, request.why, [one.id or "" for one in hit], uid)
        return hit

    def stop(self, session: Session, reason: str) -> None:
        """Have a session's agent killed, whoever must be killed for it."""
        session.killed = time.monotonic()
        session.stopping = True
        self._services.post(session, protocol.Kill(reason))

    def resume(self, peer: Peer, request: control.Resume) -> int:
        """Lift orders; return how many.  BrokerError."""
        uid = None if Role.ADMIN in self.access.roles(peer) else peer.uid
        lifted = list(self.switch.remove(uid, request.agent))
        if uid is None:
            # an administrator lifts what users have ordered for themselves, too
            for one in self.switch.switches:
                if request.agent in (None, one.agent):
                    lifted += self.switch.remove(one.uid, one.agent)
        if not lifted:
            whom = request.agent or "everybody"
            raise BrokerError(f"nothing stands against {printable(whom)}", hint="safeclaw status")
        self._order(peer, "resume", request.agent, request.why, [], uid)
        return len(lifted)

    def _order(
        self, peer: Peer, what: str, agent: str | None, why: str, ids: list[str], uid: int | None
    ) -> None:
        detail: dict[str, object] = {"order": what, "by": peer.uid, "sessions": list(ids)}
        if uid is not None:
            detail["only_uid"] = uid
        self._services.append(
            Entry(
                type=RecordType.KILL,
                agent=agent,
                uid=peer.uid,
                pid=peer.pid,
                reason=printable(why) or None,
                detail=detail,
            )
        )

    # ---- policies

    def policy(self, ref: str) -> Found:
        """Return the policy in force under a reference.  PolicyError, BrokerError."""
        try:
            return self.policies.get(ref)
        finally:
            self.changed()

    def changed(self) -> None:
        """Record what has happened to the policies, and give it to the sessions."""
        changes = self.policies.news()
        for change in changes:
            self._services.append(change.entry())
        if changes:
            self.policies.save()
        for change in changes:
            if change.found is not None:
                self._give_all(change, change.found.policy)

    def _give_all(self, change: Change, policy: Policy) -> None:
        for session in self._services.sessions():
            agent = self.registry.find(session.agent or "") if session.registered else None
            if agent is not None and agent.policy == change.ref:
                self.give(session, policy)

    def was_in_force(self, who: Opening | Session, sha256: str) -> Policy | None:
        """Return a version that a registered agent was held to before, by its hash."""
        agent = self.registry.find(who.agent or "") if who.registered else None
        if agent is None:
            return None
        for version in self.policies.state(agent.policy).earlier:
            if version.sha256 == sha256:
                with contextlib.suppress(PolicyError):
                    return self.policies.archive.load(version).policy
        return None

    def give(self, session: Session, policy: Policy) -> None:
        """Put another policy in force for a session that runs."""
        session.offered.append(policy)
        self._services.post(session, protocol.Replace(policy))
        self.questions.replaced(session)


def _text(value: object) -> object:
    # SAFETY: anybody can be refused: what they say must not fill the journal.
    return printable(value[:_REFUSED_TEXT_MAX]) if isinstance(value, str) else value


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
