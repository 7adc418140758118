"""Questions to people: what waits for a yes, and what has been granted.

Pure: the clock is passed in, and what is to be recorded or sent is returned.  A
grant is bound to a session's user and agent, the policy in force and the attempt's
fingerprint, and is never wider than what was shown.  Identical questions are asked
once; no answer in time is a no.
"""

from __future__ import annotations

import enum
import secrets

import msgspec

from safeclaw.daemon.protocol import JsonObject

#: How many questions of one session may wait; what comes beyond is refused at once.
PENDING_MAX = 64
#: How many attempts of one session may wait for them, and how many questions of one user.
TICKETS_MAX = 4096
USERS_MAX = 256
#: How long a question may be, in characters: nobody judges more than some pages.
LENGTH_MAX = 16 * 1024
_GRANTS_MAX = 4096


class Scope(enum.StrEnum):
    """For how long a grant holds."""

    ONCE = "once"
    SESSION = "session"
    TIME = "time"


class Asker(msgspec.Struct, frozen=True):
    """Whose question it is: what a grant is bound to besides the fingerprint."""

    session: str
    uid: int
    agent: str
    policy: str
    registered: bool = False


class Question(msgspec.Struct, frozen=True, kw_only=True):
    """One question, as it is shown; times are on the clock that was passed in."""

    id: str
    asker: Asker
    action: str
    target: JsonObject
    fingerprint: str
    rule: str
    reason: str
    exe: str
    pid: int
    asked: float
    until: float
    registered: bool = False


class Grant(msgspec.Struct, frozen=True):
    """A yes that is still good."""

    id: str
    scope: Scope
    asker: Asker
    fingerprint: str
    until: float | None
    by: int

    def covers(self, asker: Asker, fingerprint: str, now: float) -> bool:
        """Whether it answers this question."""
        if fingerprint != self.fingerprint or asker.policy != self.asker.policy:
            return False
        if self.until is not None and now >= self.until:
            return False
        if self.scope is Scope.SESSION:
            return asker.session == self.asker.session
        # SAFETY: what a user has granted to an agent of that name before it was registered is
        # not the administrator's word.
        return (asker.uid, asker.agent, asker.registered) == (
            self.asker.uid,
            self.asker.agent,
            self.asker.registered,
        )


class Approvals:
    """All that waits, and all that was granted, in one broker."""

    def __init__(self) -> None:
        self._pending: dict[str, Question] = {}
        #: Which tickets of its session wait for each question.
        self._tickets: dict[str, list[int]] = {}
        self._grants: list[Grant] = []

    @property
    def pending(self) -> tuple[Question, ...]:
        """What waits, oldest first."""
        return tuple(self._pending.values())

    def find(self, ident: str) -> Question | None:
        """Return the question of that name."""
        return self._pending.get(ident)

    def waiting(self, question: Question) -> int:
        """Return how many attempts wait for its answer."""
        return len(self._tickets.get(question.id, ()))

    def granted(self, asker: Asker, fingerprint: str, now: float) -> Grant | None:
        """Return a grant that answers already."""
        self._grants = [one for one in self._grants if one.until is None or now < one.until]
        return next((one for one in self._grants if one.covers(asker, fingerprint, now)), None)

    def same(self, asker: Asker, fingerprint: str) -> Question | None:
        """Return a question that waits already and is the same."""
        return next(
            (
                one
                for one in self._pending.values()
                if one.asker == asker and one.fingerprint == fingerprint
            ),
            None,
        )

    def full(self, asker: Asker, *, joining: bool = False) -> bool:
        """Whether somebody has asked as much as they may at once.

        ``joining``: one more attempt is to wait for a question that waits already.
        """
        mine = [one for one in self._pending.values() if one.asker.session == asker.session]
        if sum(self.waiting(one) for one in mine) >= TICKETS_MAX:
            return True
        if joining:
            return False
        users = sum(one.asker.uid == asker.uid for one in self._pending.values())
        return len(mine) >= PENDING_MAX or users >= USERS_MAX

    def ask(self, question: Question, ticket: int) -> None:
        """Have a question wait, or one more ticket for the same."""
        self._pending.setdefault(question.id, question)
        self._tickets.setdefault(question.id, []).append(ticket)

    def settle(self, question: Question, grant: Grant | None) -> list[int]:
        """Take a question off the list, answered; return the tickets that waited for it."""
        del self._pending[question.id]
        if grant is not None and grant.scope is not Scope.ONCE:
            if len(self._grants) >= _GRANTS_MAX:
                self._grants.pop(0)  # the oldest is asked again
            self._grants.append(grant)
        return self._tickets.pop(question.id, [])

    def withdraw(self, session: str, ticket: int | None) -> list[Question]:
        """Forget a ticket (None: every one) of a session; return what nobody waits for now."""
        dropped: list[Question] = []
        for question in self.pending:
            if question.asker.session != session:
                continue
            tickets = self._tickets[question.id]
            self._tickets[question.id] = left = (
                [] if ticket is None else [one for one in tickets if one != ticket]
            )
            if not left:
                del self._pending[question.id], self._tickets[question.id]
                dropped.append(question)
        return dropped

    def forget_session(self, session: str) -> None:
        """Drop the grants that ended with a session."""
        self._grants = [
            one
            for one in self._grants
            if not (one.scope is Scope.SESSION and one.asker.session == session)
        ]

    def expired(self, now: float) -> list[Question]:
        """Return the questions that nobody has answered in time."""
        return [one for one in self._pending.values() if now >= one.until]

    def next_expiry(self) -> float | None:
        """Return when the next one expires."""
        return min((one.until for one in self._pending.values()), default=None)


def new_name(taken: Approvals) -> str:
    """Return a short name for a question, that no other has."""
    while True:
        name = secrets.token_hex(3)
        if taken.find(name) is None:
            return name
