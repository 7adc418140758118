"""Registered agents come, change and go: what administrators ask, carried out and recorded.

It belongs to the broker's main thread.
"""

from __future__ import annotations

import pwd

import msgspec

from safeclaw.daemon import control
from safeclaw.daemon.authority import Authority
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.outcome import Outcome
from safeclaw.daemon.peer import Peer
from safeclaw.daemon.registry import Agent
from safeclaw.daemon.services import Services
from safeclaw.daemon.sessions import Session
from safeclaw.errors import BrokerError
from safeclaw.policies.model import printable

_LIFETIME_MAX = 3660 * 86400


class Provisioning:
    """See the module."""

    def __init__(self, authority: Authority, services: Services) -> None:
        self._authority = authority
        self._services = services

    def handle(self, peer: Peer, request: control.AgentRequest) -> Outcome:
        """Do what is asked of an agent.  BrokerError."""
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

    def _add(self, peer: Peer, request: control.AddAgent) -> Outcome:
        registry = self._authority.registry
        self._authority.policy(request.policy)  # it has to be one
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
            raise BrokerError(
                "the overlap is from 0 seconds to 90 days", hint="such as --overlap 1d"
            )
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
        found = self._authority.policy(request.policy)
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
        raise BrokerError(
            "a key is good for a minute at least, and ten years at most",
            hint="such as --expires 90d",
        )
    return seconds


def _uid(user: str | None) -> int | None:
    if user is None:
        return None
    try:
        return int(user) if user.isascii() and user.isdigit() else pwd.getpwnam(user).pw_uid
    except KeyError:
        raise BrokerError(
            f"no user is called {printable(user)}",
            hint="an agent's own: systemctl start safeclaw-agent-user@NAME makes _agent-NAME",
        ) from None
