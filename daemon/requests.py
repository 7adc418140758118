"""Answers what the command line asks of a broker, by who is asking.

Every request names the role it needs; what is refused is recorded.  An ordinary user
sees and stops only sessions of their own.
"""

from __future__ import annotations

import contextlib
import pwd
import time
from collections.abc import Callable

import msgspec

from safeclaw.daemon import control
from safeclaw.daemon.authority import Authority
from safeclaw.daemon.health import Snapshot
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.peer import Peer, Role
from safeclaw.daemon.questions import shown
from safeclaw.daemon.registry import Agent, Key
from safeclaw.daemon.services import Services
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError
from safeclaw.policies.model import printable

_ANY = frozenset(Role)
_ADMIN = frozenset({Role.ADMIN})
NEEDED: dict[type[object], frozenset[Role]] = {
    control.Status: _ANY,
    control.Sessions: _ANY,
    control.Kill: frozenset({Role.RUN, Role.ADMIN}),
    control.Resume: frozenset({Role.RUN, Role.ADMIN}),
    control.ListApprovals: _ANY,
    control.Approve: frozenset({Role.RUN, Role.ADMIN}),
    control.Refuse: frozenset({Role.RUN, Role.ADMIN}),
    control.Agents: frozenset({Role.ADMIN, Role.AUDIT}),
    control.AddAgent: _ADMIN,
    control.RotateKey: _ADMIN,
    control.RevokeKey: _ADMIN,
    control.RemoveAgent: _ADMIN,
    control.SetPolicy: _ADMIN,
    control.Reload: _ADMIN,
}
_LIFETIME_MAX = 3660 * 86400


class Outcome(msgspec.Struct, frozen=True):
    """What to reply, once these sessions have ended and all is on disk."""

    data: object
    sessions: tuple[Session, ...] = ()


class Requests:
    """Belongs to the broker; ``status`` returns what only the broker knows of itself."""

    def __init__(
        self,
        authority: Authority,
        services: Services,
        status: Callable[[], Snapshot],
        reload: Callable[[], None],
    ) -> None:
        self._authority = authority
        self._services = services
        self._status = status
        self._reload = reload

    def handle(self, peer: Peer, request: control.Request) -> Outcome:
        """Do what is asked.  BrokerError when it cannot be, or must not."""
        roles = self._authority.access.roles(peer)
        # INVARIANT: a request that is not in the table is nobody's to make.
        if not roles & NEEDED.get(type(request), frozenset()):
            needed = " or ".join(
                sorted(role.value for role in NEEDED[type(request)] - {Role.AUDIT})
            )
            target = control.target(request)
            verb = str(target["what"]).partition(" ")[0]
            reason = f"this needs the role {needed or 'audit'}"
            self._authority.refused(peer, f"control.{verb}", target, reason)
            groups = self._authority.settings.groups
            hint = f"members of {groups.run}, {groups.admin} or {groups.audit} have roles"
            raise BrokerError(f"not permitted: {reason}", hint=hint)
        match request:
            case control.Status():
                return Outcome(self._show_status(peer, roles))
            case control.Sessions():
                return Outcome([_session(one) for one in self._visible(peer, roles)])
            case control.Kill():
                hit = self._authority.kill(peer, request)
                return Outcome({"sessions": [_session(one) for one in hit]}, tuple(hit))
            case control.Resume():
                return Outcome({"lifted": self._authority.resume(peer, request)})
            case control.ListApprovals():
                return Outcome(self._approvals(peer))
            case control.Approve() | control.Refuse():
                self._authority.questions.settle(peer, request)
                return Outcome({"approval": request.id})
            case control.Agents(name):
                return Outcome(self._agents(name))
            case control.Reload():
                self._reload()
                return Outcome({})
            case _:
                return self._change(peer, request)

    # ---- what there is

    def _visible(self, peer: Peer, roles: frozenset[Role]) -> list[Session]:
        every = bool(roles & {Role.ADMIN, Role.AUDIT})
        return [one for one in self._services.sessions() if every or one.uid == peer.uid]

    def _show_status(self, peer: Peer, roles: frozenset[Role]) -> dict[str, object]:
        visible = self._visible(peer, roles)
        every = bool(roles & {Role.ADMIN, Role.AUDIT})
        orders: list[object] = []
        with contextlib.suppress(BrokerError):  # damaged: that is the fault which is shown
            orders = [
                msgspec.to_builtins(one)
                for one in self._authority.switch.switches
                if every or one.uid in (None, peer.uid)
            ]
        now = self._status()
        counts = [one.counts for one in visible]
        told: dict[str, object] = {
            "pid": now.pid,
            "uid": now.uid,
            "state": now.state,
            "since": now.since,
            "uptime": int(now.uptime),
            "chain": now.standing.chain,
            "head": now.standing.head,
            "head_age": now.standing.age,
            "durable": now.standing.durable,
            "fault": now.fault,
            "sessions": len(visible),
            "decisions": now.decisions_total if every else sum(one[0] for one in counts),
            "denials": now.denials_total if every else sum(one[1] for one in counts),
            "approvals": len(self._approvals(peer)),
            "killed": orders,
            "roles": sorted(role.value for role in roles),
            "system": self._authority.access.system,
        }
        if every:
            told |= {
                "refusals": now.refusals_total,
                "records": now.records_total,
                "key_epoch": now.standing.epoch,
                "journald": {
                    "forwarded": now.standing.forwarded,
                    "behind": max(0, now.standing.durable - now.standing.forwarded),
                    "problem": now.standing.forward_problem,
                },
                "agents": now.agents,
                "keys_due": now.keys_due,
                "policies": now.policies,
                "alerts": msgspec.to_builtins(now.alerts),
            }
        return told

    def _approvals(self, peer: Peer) -> list[dict[str, object]]:
        now = time.time()
        return [
            shown(one, now, self._authority.questions.approvals.waiting(one))
            for one in self._authority.questions.approvals.pending
            if self._authority.questions.may_answer(peer, one)
        ]

    def _agents(self, name: str | None) -> list[dict[str, object]]:
        registry = self._authority.registry
        chosen = registry.agents if name is None else (registry.get(name),)
        running = [one.agent for one in self._services.sessions() if one.registered]
        due = self._authority.settings.key_rotation_days * 86400
        return [
            _agent(one, registry.now(), due, running.count(one.name))
            for one in chosen
            if name is not None or one.removed is None
        ]

    # ---- what changes

    def _change(self, peer: Peer, request: control.Request) -> Outcome:
        match request:
            case control.AddAgent():
                return self._add(peer, request)
            case control.RotateKey():
                return self._rotate(peer, request)
            case control.RevokeKey():
                return self._revoke(peer, request)
            case control.RemoveAgent():
                return self._remove(peer, request)
            case control.SetPolicy():
                return self._set_policy(peer, request)
            case _:
                raise BrokerError("no such request")

    def _add(self, peer: Peer, request: control.AddAgent) -> Outcome:
        registry = self._authority.registry
        self._authority.policies.get(request.policy)  # it has to be one
        now = registry.now()
        agent, text = registry.plan(
            Agent(
                name=request.name,
                owner=printable(request.owner),
                environment=printable(request.environment),
                policy=request.policy,
                created=now,
                created_by=peer.uid,
                uid=_uid(request.user),
                policy_since=now,
            ),
            _lifetime(request.lifetime),
        )
        # Granted only after it is recorded; a crash between the two leaves nothing usable.
        self._record(peer, agent, "added", {"key": agent.keys[0].id})
        registry.put(agent)
        return Outcome({"name": agent.name, "key": agent.keys[0].id, "api_key": text})

    def _rotate(self, peer: Peer, request: control.RotateKey) -> Outcome:
        registry = self._authority.registry
        agent = registry.get(request.name)
        if not 0 <= request.overlap <= 90 * 86400:
            raise BrokerError("the overlap is from 0 seconds to 90 days")
        agent, key, text = registry.rotated(agent, _lifetime(request.lifetime), request.overlap)
        detail: dict[str, object] = {"key": key.id, "overlap": request.overlap}
        self._record(peer, agent, "rotated", detail)
        registry.put(agent)
        return Outcome({"name": agent.name, "key": key.id, "api_key": text})

    def _revoke(self, peer: Peer, request: control.RevokeKey) -> Outcome:
        registry = self._authority.registry
        agent, ids = registry.revoked(registry.get(request.name), request.key)
        # Taken away at once, and recorded then: the other order would leave a moment.
        registry.put(agent)
        hit = self._stop(request.name, ids, "its key was revoked")
        detail: dict[str, object] = {"keys": list(ids), "sessions": [one.id for one in hit]}
        self._record(peer, agent, "revoked", detail, why=request.why)
        return Outcome({"name": agent.name, "keys": list(ids), "sessions": len(hit)}, tuple(hit))

    def _remove(self, peer: Peer, request: control.RemoveAgent) -> Outcome:
        registry = self._authority.registry
        agent = registry.get(request.name)
        now = registry.now()
        keys = tuple(
            key if key.revoked is not None else msgspec.structs.replace(key, revoked=now)
            for key in agent.keys
        )
        registry.put(msgspec.structs.replace(agent, keys=keys, removed=now))
        hit = self._stop(agent.name, tuple(key.id for key in keys), "the agent was removed")
        self._record(peer, agent, "removed", {"sessions": [one.id for one in hit]}, why=request.why)
        return Outcome({"name": agent.name, "sessions": len(hit)}, tuple(hit))

    def _set_policy(self, peer: Peer, request: control.SetPolicy) -> Outcome:
        registry = self._authority.registry
        agent = registry.get(request.name)
        found = self._authority.policies.get(request.policy)
        detail: dict[str, object] = {"previous": agent.policy, "sha256": found.policy.sha256}
        changed = msgspec.structs.replace(agent, policy=request.policy, policy_since=registry.now())
        self._record(peer, changed, "policy", detail)
        registry.put(changed)
        for session in self._services.sessions():
            if session.registered and session.agent == agent.name:
                self._authority.give(session, found.policy)
        return Outcome({"name": agent.name, "policy": request.policy})

    def _stop(self, name: str, keys: tuple[str, ...], why: str) -> list[Session]:
        hit = [
            one
            for one in self._services.sessions()
            if one.registered and one.agent == name and one.key in keys
        ]
        for session in hit:
            self._authority.stop(session, why)
        return hit

    def _record(
        self,
        peer: Peer,
        agent: Agent,
        event: str,
        more: dict[str, object],
        *,
        why: str = "",
    ) -> None:
        # Never key_change, whatever happens to an API key: that is the chain's own signing key.
        detail: dict[str, object] = {
            "event": event,
            "by": peer.uid,
            **more,
            "owner": agent.owner,
            "environment": agent.environment,
            "policy": agent.policy,
        }
        if agent.uid is not None:
            detail["user"] = agent.uid
        self._services.append(
            Entry(
                type=RecordType.AGENT_CHANGE,
                agent=agent.name,
                uid=peer.uid,
                pid=peer.pid,
                reason=printable(why) or None,
                detail=detail,
            )
        )


def _lifetime(seconds: int) -> int:
    if not 60 <= seconds <= _LIFETIME_MAX:
        raise BrokerError("a key is good for a minute at least, and ten years at most")
    return seconds


def _uid(user: str | None) -> int | None:
    if user is None:
        return None
    try:
        return int(user) if user.isascii() and user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BrokerError(f"no user is called {printable(user)}") from None


def _session(session: Session) -> dict[str, object]:
    decisions, denials = session.counts
    return {
        "session": session.id,
        "agent": session.agent,
        "registered": session.registered,
        "uid": session.uid,
        "supervisor": session.pid,
        "command": list(session.command),
        "workspace": session.workspace,
        "policy": session.policy_name,
        "policy_sha256": session.policy_sha256,
        "decisions": decisions,
        "denials": denials,
        "started": int(session.started),
        "observe": session.observe,
    }


def _key(key: Key, now: int) -> dict[str, object]:
    return {
        "id": key.id,
        "state": key.state(now),
        "created": key.created,
        "expires": key.expires,
        "used": key.used,
    }


def _agent(agent: Agent, now: int, due: int, sessions: int) -> dict[str, object]:
    return {
        "name": agent.name,
        "owner": agent.owner,
        "environment": agent.environment,
        "policy": agent.policy,
        "policy_since": agent.policy_since or agent.created,
        "user": agent.uid,
        "created": agent.created,
        "created_by": agent.created_by,
        "rotation_due": agent.newest + due,
        "overdue": now >= agent.newest + due,
        "sessions": sessions,
        "keys": [_key(key, now) for key in agent.keys],
    }
