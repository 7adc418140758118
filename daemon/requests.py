"""Answers what the command line asks of a broker, by who is asking.

Every request names the role it needs; what is refused is recorded.  An ordinary user
sees and stops only sessions of their own.
"""

from __future__ import annotations

import contextlib
import hashlib
import time
from collections.abc import Callable

import msgspec

from safeclaw.daemon import control, review
from safeclaw.daemon.authority import Authority
from safeclaw.daemon.health import Snapshot
from safeclaw.daemon.outcome import Outcome
from safeclaw.daemon.peer import Peer, Role
from safeclaw.daemon.policyrequests import PolicyRequests
from safeclaw.daemon.provisioning import Provisioning
from safeclaw.daemon.questions import shown
from safeclaw.daemon.registry import Agent, Key
from safeclaw.daemon.services import Services
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError

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
    control.Records: _ANY,
    control.Review: frozenset({Role.ADMIN, Role.AUDIT}),
    control.AddAgent: _ADMIN,
    control.RotateKey: _ADMIN,
    control.RevokeKey: _ADMIN,
    control.RemoveAgent: _ADMIN,
    control.SetPolicy: _ADMIN,
    control.Reload: _ADMIN,
    control.PendingPolicies: frozenset({Role.ADMIN, Role.AUDIT}),
    control.ApprovePolicy: _ADMIN,
    control.RefusePolicy: _ADMIN,
    control.RollBack: _ADMIN,
    control.PolicyText: frozenset({Role.ADMIN, Role.AUDIT}),
}


class Requests:
    """Belongs to the broker; ``status`` returns what only the broker knows of itself."""

    def __init__(
        self,
        authority: Authority,
        services: Services,
        status: Callable[[], Snapshot],
    ) -> None:
        self._authority = authority
        self._services = services
        self._status = status
        self._provisioning = Provisioning(authority, services)
        self._policies = PolicyRequests(authority, services)

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
            hint = f"members of {groups.run}, {groups.admin} or {groups.audit} have roles; "
            hint += "--broker embedded asks a broker of your own"
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
            case control.Review(why):
                return Outcome(self._review(peer, why))
            case control.Records():
                return Outcome({}, reads_everything=Role.AUDIT in roles)
            case control.Reload():
                return Outcome({}, looks=True)
            case (
                control.PendingPolicies()
                | control.ApprovePolicy()
                | control.RefusePolicy()
                | control.RollBack()
                | control.PolicyText()
            ):
                return self._policies.handle(peer, request)
            case _:
                return self._provisioning.handle(peer, request)

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
                "policies_waiting": now.policies_waiting,
                "policy_problems": now.policy_problems,
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

    def _review(self, peer: Peer, why: str) -> dict[str, str]:
        sessions, chain = tuple(self._services.sessions()), self._status().standing.chain
        text = review.report(self._authority, sessions, chain, peer)
        self._services.append(review.entry(text, self._authority, peer, why))
        return {"text": text.decode(), "sha256": hashlib.sha256(text).hexdigest()}

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
