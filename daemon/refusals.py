"""Refusals by the broker itself: each is recorded, and of a flood of them the number.

Anybody who reaches the broker's socket can be refused, as often as they like: that must not
fill the journal, nor pass without a trace.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import msgspec

from safeclaw.daemon.journal.record import Entry

#: How many refusals of one user are recorded in a minute; then only how many more there were.
A_MINUTE = 60
#: Of how many users there is an account at a time.
_USERS_MAX = 4096


class _Account(msgspec.Struct):
    """The refusals of one user in the minute that began with the first of them."""

    until: float
    count: int = 0
    #: The last that was not recorded.
    last: Entry | None = None


class Refusals:
    """See the module."""

    def __init__(
        self, append: Callable[[Entry], None], now: Callable[[], float] = time.monotonic
    ) -> None:
        """Give what is to be recorded to ``append``; ``now`` is in seconds, and never goes back."""
        self._append = append
        self._now = now
        #: By uid, the oldest first.
        self._accounts: dict[int, _Account] = {}

    def add(self, uid: int, entry: Entry) -> None:
        """Record a refusal of a user, or only count it."""
        self.tick()
        if uid not in self._accounts:
            if len(self._accounts) >= _USERS_MAX:
                self._settle(next(iter(self._accounts)))
            self._accounts[uid] = _Account(self._now() + 60)
        account = self._accounts[uid]
        account.count += 1
        if account.count <= A_MINUTE:
            self._append(entry)
        else:
            account.last = entry

    def tick(self) -> None:
        """Record how many there were in each minute that is over."""
        now = self._now()
        for uid in [uid for uid, account in self._accounts.items() if account.until <= now]:
            self._settle(uid)

    def next_tick(self) -> float | None:
        """Return in how many seconds :meth:`tick` has something to record; None for never."""
        due = [account.until for account in self._accounts.values() if account.last is not None]
        return max(0.0, min(due) - self._now()) if due else None

    def close(self) -> None:
        """Record how many there were; there are none any more."""
        for uid in list(self._accounts):
            self._settle(uid)

    def _settle(self, uid: int) -> None:
        account = self._accounts.pop(uid)
        if (last := account.last) is not None:
            more = account.count - A_MINUTE
            self._append(
                msgspec.structs.replace(
                    last,
                    target={"what": f"{more} more refusals within a minute, the last of them this"},
                    detail={"refusals": more},
                )
            )
