"""The access review: who may do what, by which policy, since when, on which keys.

The report is text with a hash, and making it is a record with that hash: what a reviewer
has kept can later be held against the chain (SOC 2 CC6.2, CC6.3).
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from safeclaw.daemon.authority import Authority
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.peer import Peer, user_name
from safeclaw.daemon.registry import Agent, Key
from safeclaw.daemon.sessions import Session
from safeclaw.errors import SafeclawError
from safeclaw.policies.gist import gist
from safeclaw.policies.model import printable

_DAY = 86400


def report(
    authority: Authority, sessions: Sequence[Session], chain: str | None, peer: Peer
) -> bytes:
    """Return the review as JSON text.  It ends with a newline: its hash is that of a file."""
    registry = authority.registry
    now, every = registry.now(), authority.settings.key_rotation_days * _DAY
    value: dict[str, object] = {
        "review": "agents",
        "chain": chain,
        "made": now,
        "by": peer.uid,
        "by_name": user_name(peer.uid),
        "rotation_days": authority.settings.key_rotation_days,
        "two_people": authority.settings.require_approval,
        "agents": [
            _agent(authority, one, now, every, sessions)
            for one in registry.agents
            if one.removed is None
        ],
        "removed": [
            {"name": one.name, "owner": one.owner, "removed": one.removed}
            for one in registry.agents
            if one.removed is not None
        ],
    }
    return msgspec.json.format(msgspec.json.encode(value, order="sorted"), indent=2) + b"\n"


def entry(text: bytes, authority: Authority, peer: Peer, why: str) -> Entry:
    """Return the record that such a review was made."""
    registry = authority.registry
    agents = [one for one in registry.agents if one.removed is None]
    old = registry.now() - authority.settings.key_rotation_days * _DAY
    return Entry(
        type=RecordType.EXPORT,
        action="agent.review",
        uid=peer.uid,
        pid=peer.pid,
        reason=printable(why) or None,
        detail={
            "agents": len(agents),
            "overdue": [one.name for one in agents if one.newest <= old],
            "sha256": hashlib.sha256(text).hexdigest(),
        },
    )


def _agent(
    authority: Authority, agent: Agent, now: int, every: int, sessions: Sequence[Session]
) -> dict[str, object]:
    return {
        "name": agent.name,
        "owner": agent.owner,
        "environment": agent.environment,
        "user": agent.uid,
        "user_name": None if agent.uid is None else user_name(agent.uid),
        "created": agent.created,
        "created_by": agent.created_by,
        "policy": _policy(authority, agent),
        "keys": [_key(one, now) for one in agent.keys],
        "rotation_due": agent.newest + every,
        "overdue": now >= agent.newest + every,
        "sessions": [one.id for one in sessions if one.registered and one.agent == agent.name],
        "last_session": agent.last_session or None,
        "last_used": max((one.used for one in agent.keys if one.used is not None), default=None),
    }


def _policy(authority: Authority, agent: Agent) -> dict[str, object]:
    """Return what an agent is held to; ``problem`` where nothing is in force, and so nothing."""
    named: dict[str, object] = {
        "name": agent.policy,
        "agent_has_it_since": agent.policy_since or agent.created,
    }
    try:
        found = authority.policy(agent.policy)
    except SafeclawError as problem:
        return {**named, "problem": problem.message}
    state = authority.policies.state(agent.policy)
    pending = state.pending
    return {
        **named,
        "sha256": found.policy.sha256,
        "version": found.policy.version,
        "in_force_since": state.since,
        "file": found.version.name,
        "meaning": gist(found.policy),
        "waiting": None if pending is None else pending.version.sha256,
    }


def _key(key: Key, now: int) -> dict[str, object]:
    return {
        "id": key.id,
        "state": key.state(now),
        "created": key.created,
        "expires": key.expires,
        "revoked": key.revoked,
        "used": key.used,
        "age_days": (now - key.created) // _DAY,
    }
