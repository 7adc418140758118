"""Registered agents and their API keys: who they are, whose they are, what they may be.

One file in the state directory.  A key is shown once, when it is made; what is kept
is its SHA-256, which is enough for 256 random bits (there is nothing to guess).  An
agent that was removed stays on file, so that its name is never another's.
"""

from __future__ import annotations

import hashlib
import hmac
import re
import secrets
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.daemon import statefile
from safeclaw.errors import BrokerError

FILE_NAME = "agents.json"
_PREFIX = "sck"
_KEY = re.compile(r"sck_([0-9a-f]{8})_([A-Za-z0-9_-]{43})")
_NAME = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,62}[a-z0-9])?")


class Key(msgspec.Struct, frozen=True, omit_defaults=True):
    """One API key.  Times are seconds since the epoch."""

    id: str
    sha256: str
    created: int
    expires: int
    revoked: int | None = None
    used: int | None = None

    def valid(self, now: int) -> bool:
        """Whether the key opens a session now."""
        return self.revoked is None and now < self.expires

    def state(self, now: int) -> str:
        """Return valid, expired or revoked."""
        if self.revoked is not None:
            return "revoked"
        return "valid" if now < self.expires else "expired"


class Agent(msgspec.Struct, frozen=True, omit_defaults=True):
    """A registered agent.  ``uid`` is the only user that may run it; None for any."""

    name: str
    owner: str
    environment: str
    policy: str
    created: int
    created_by: int
    keys: tuple[Key, ...] = ()
    uid: int | None = None
    removed: int | None = None
    policy_since: int = 0
    last_session: str = ""

    @property
    def newest(self) -> int:
        """When the newest of its keys was made that is not revoked; else, that it had."""
        kept = [key for key in self.keys if key.revoked is None] or self.keys
        return max((key.created for key in kept), default=self.created)


class Registry:
    """The agents on file.  Every change is on disk when the method returns, but for uses.

    When a key was last used is written by :meth:`flush`: many sessions cost one write.
    """

    def __init__(self, state: Path, clock: Callable[[], float]) -> None:
        self._path = state / FILE_NAME
        self._clock = clock
        self._agents: dict[str, Agent] = {}
        self._unwritten = False

    def load(self) -> None:
        """Read the file; raises BrokerError when there is one that cannot be understood."""
        found = statefile.read(self._path, tuple[Agent, ...], ())
        self._agents = {agent.name: agent for agent in found}

    def now(self) -> int:
        """Return the time in seconds."""
        return int(self._clock())

    @property
    def agents(self) -> tuple[Agent, ...]:
        """Return all agents, removed ones too, by name."""
        return tuple(self._agents[name] for name in sorted(self._agents))

    def find(self, name: str) -> Agent | None:
        """Return an agent that is not removed."""
        agent = self._agents.get(name)
        return None if agent is None or agent.removed is not None else agent

    def get(self, name: str) -> Agent:
        """Return an agent that is not removed.  BrokerError."""
        agent = self.find(name)
        if agent is None:
            raise BrokerError(f"no agent is called {name}", hint="safeclaw agent list")
        return agent

    def plan(self, agent: Agent, lifetime: int) -> tuple[Agent, str]:
        """Return a new agent with its first key, and that key's text.  BrokerError."""
        if not _NAME.fullmatch(agent.name):
            raise BrokerError(
                f"'{agent.name}' is no name for an agent",
                hint="lower-case letters, digits and hyphens, at most 64",
            )
        known = self._agents.get(agent.name)
        if known is not None:
            was = "" if known.removed is None else ", and was removed: names are not used again"
            raise BrokerError(
                f"an agent is called {agent.name} already{was}", hint="give another name"
            )
        key, text = self._key(lifetime)
        return msgspec.structs.replace(agent, keys=(key,)), text

    def rotated(self, agent: Agent, lifetime: int, overlap: int) -> tuple[Agent, Key, str]:
        """Return the agent with one more key; the others end after ``overlap`` seconds."""
        key, text = self._key(lifetime)
        until = self.now() + overlap
        others = tuple(
            msgspec.structs.replace(old, expires=min(old.expires, until)) for old in agent.keys
        )
        return msgspec.structs.replace(agent, keys=(*others, key)), key, text

    def revoked(self, agent: Agent, ident: str | None) -> tuple[Agent, tuple[str, ...]]:
        """Return the agent with one key, or every key, revoked, and which were."""
        now = self.now()
        ids = tuple(key.id for key in agent.keys if key.revoked is None and ident in (None, key.id))
        if not ids:
            what = "no key is left to revoke" if ident is None else f"no such key: {ident}"
            raise BrokerError(f"{agent.name}: {what}", hint=f"safeclaw agent show {agent.name}")
        keys = tuple(
            msgspec.structs.replace(key, revoked=now) if key.id in ids else key
            for key in agent.keys
        )
        return msgspec.structs.replace(agent, keys=keys), ids

    def put(self, agent: Agent) -> None:
        """Write an agent's new state.  BrokerError; then nothing has changed."""
        agents = {**self._agents, agent.name: agent}
        statefile.write(self._path, tuple(agents[name] for name in sorted(agents)))
        self._agents = agents
        self._unwritten = False

    def used(self, name: str, key: str, session: str) -> None:
        """Note that a key has opened a session; not on disk before :meth:`flush`."""
        agent = self._agents[name]
        now = self.now()
        keys = tuple(
            msgspec.structs.replace(one, used=now) if one.id == key else one for one in agent.keys
        )
        self._agents[name] = msgspec.structs.replace(agent, keys=keys, last_session=session)
        self._unwritten = True

    @property
    def unwritten(self) -> bool:
        """Whether :meth:`flush` has something to write."""
        return self._unwritten

    def flush(self) -> None:
        """Write what was only noted.  BrokerError; then it is still to be written."""
        if self._unwritten:
            statefile.write(self._path, self.agents)
            self._unwritten = False

    def authenticate(self, name: str, credential: str, uid: int) -> tuple[Agent, Key]:
        """Return the agent and the key that opens a session for it.  BrokerError.

        SAFETY: an unknown agent, a wrong key and another's key are told apart in the
        message only once the key itself was right.
        """
        agent = self.find(name)
        match = _KEY.fullmatch(credential.strip())
        digest = hashlib.sha256(match[2].encode()).hexdigest() if match else ""
        keys = agent.keys if agent is not None else ()
        for key in keys:
            if match and key.id == match[1] and hmac.compare_digest(key.sha256, digest):
                assert agent is not None
                if not key.valid(self.now()):
                    raise BrokerError(
                        f"the key {key.id} of {name} is {key.state(self.now())}",
                        hint=f"safeclaw agent rotate-key {name}",
                    )
                if agent.uid is not None and uid not in (agent.uid, 0):
                    raise BrokerError(
                        f"{name} is not this user's to run",
                        hint=f"safeclaw agent show {name} names the one user that may",
                    )
                return agent, key
        raise BrokerError(
            f"the key is not one of {name}'s",
            hint="SAFECLAW_API_KEY, or the credential api-key of the unit, has to hold it",
        )

    def _key(self, lifetime: int) -> tuple[Key, str]:
        ident, secret = secrets.token_hex(4), secrets.token_urlsafe(32)
        now = self.now()
        digest = hashlib.sha256(secret.encode()).hexdigest()
        return Key(ident, digest, now, now + lifetime), f"{_PREFIX}_{ident}_{secret}"
