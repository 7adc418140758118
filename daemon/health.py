"""How the broker is: counted while it runs, and told to whoever may know.

It belongs to the broker's main thread and lives as long as the broker.  It only counts
and tells; what is unusual it hands to the alerts.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Iterable

import msgspec

from safeclaw.daemon import hooks
from safeclaw.daemon.alerts import Alert, Alerts, Tally
from safeclaw.daemon.changes import Event
from safeclaw.daemon.forwarding import Forwarding
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.keys import read_keyring
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.sessions import Session
from safeclaw.errors import JournalError
from safeclaw.policies.model import printable

#: Over how long denials are counted, and how often, in seconds.
_WINDOW = 60.0
_SAMPLE = 1.0


class Standing(msgspec.Struct, frozen=True):
    """Where the journal and its copy in journald stand.  Numbers are records'; -1 is none.

    ``age`` is how long ago the newest record was made, in seconds; ``epoch`` how often the
    signing key was rolled, None when that cannot be read.
    """

    chain: str | None = None
    head: int = -1
    durable: int = -1
    age: float | None = None
    epoch: int | None = None
    forwarded: int = -1
    forward_problem: str | None = None


class Snapshot(msgspec.Struct, frozen=True):
    """What is true of a broker at one moment; numbers with ``total`` count since its start."""

    pid: int
    uid: int
    state: str
    since: int
    uptime: float
    standing: Standing
    fault: str | None
    sessions: int
    approvals: int
    kill_orders: int
    agents: int
    keys_due: tuple[str, ...]
    policies: dict[str, str]
    policies_waiting: dict[str, str]
    policy_problems: dict[str, str]
    decisions_total: int
    denials_total: int
    refusals_total: int
    records_total: dict[str, int]
    alerts: Tally


def standing(journal: Journal, forwarding: Forwarding | None, durable: int) -> Standing:
    """Return where a journal stands."""
    try:
        ring = read_keyring(journal.directory)
        epoch = len(ring.certificates) if ring is not None else 0
    except JournalError:
        epoch = None
    sent, problem = forwarding.state if forwarding is not None else (0, None)
    return Standing(
        chain=journal.chain_id,
        head=journal.head[0],
        durable=durable,
        age=journal.idle_ns / 1e9,
        epoch=epoch,
        forwarded=sent - 1,
        forward_problem=problem,
    )


class Health:
    """The counters of one broker."""

    def __init__(self, alerts: Alerts, denials_a_minute: int) -> None:
        self.alerts = alerts
        self._threshold = denials_a_minute
        self._began = time.monotonic()
        self._records: collections.Counter[str] = collections.Counter()
        self._refusals = 0
        self._decisions = 0
        self._denials = 0
        #: (when, how many denials until then), oldest first: a little more than the window.
        self._samples = collections.deque([(self._began, 0)])
        self._unsampled = False

    @property
    def uptime(self) -> float:
        """How long the broker has been up, in seconds."""
        return time.monotonic() - self._began

    @property
    def records(self) -> dict[str, int]:
        """How many records of each type were made, but for decisions of policies."""
        return dict(self._records)

    @property
    def refusals(self) -> int:
        """How many requests and sessions were refused for who asked."""
        return self._refusals

    def decisions(self, running: Iterable[Session]) -> tuple[int, int]:
        """Return how many decisions were taken in, and how many of them are denials."""
        counts = [one.fresh_counts for one in running if not one.counted]
        decided = self._decisions + sum(count[0] for count in counts)
        return decided, self._denials + sum(count[1] for count in counts)

    # ---- what happens

    def noted(self, entry: Entry) -> None:
        """Take in a record that is not a policy's decision."""
        if entry.type is RecordType.DECISION:
            self._refusals += 1
            return
        self._records[entry.type.value] += 1
        if entry.type is RecordType.VIOLATION:
            self.alerts.raised(
                Alert(
                    "violation",
                    entry.reason or "a deed was not what had been approved",
                    session=entry.session,
                    agent=entry.agent,
                    action=entry.action,
                    target=entry.target,
                )
            )
        detail = entry.detail or {}
        if entry.type is RecordType.POLICY_LOAD and detail.get("event") == Event.PENDING.value:
            waits = f"{detail.get('ref')} {detail.get('proposed')}"
            self.alerts.raised(Alert("policy", f"a policy waits for two people: {waits}"))

    def faulted(self, reason: str) -> None:
        """Take in that nothing is allowed any more."""
        self._records["fault"] += 1
        self.alerts.raised(Alert("fault", printable(reason)))

    def left(self, session: Session) -> None:
        """Keep the counts of a session that has ended."""
        if not session.counted:
            session.counted = True
            decisions, denials = session.fresh_counts
            self._decisions += decisions
            self._denials += denials

    # ---- time

    def tick(self, running: Iterable[Session]) -> None:
        """Send what was held back, and look at the rate of denials; once a turn of the loop."""
        now = time.monotonic()
        self.alerts.tick(now)
        if not self._threshold:
            return
        self._unsampled = now < self._samples[-1][0] + _SAMPLE
        if self._unsampled:
            return
        total = self.decisions(running)[1]
        while len(self._samples) > 1 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()
        rate = total - self._samples[0][1]
        news = total - self._samples[-1][1]
        self._samples.append((now, total))
        if news and rate >= self._threshold:
            self.alerts.raised(
                Alert("denials", f"{rate} attempts were denied within a minute", denials=rate)
            )

    def next_tick(self) -> float | None:
        """Return in how many seconds :meth:`tick` has something to do."""
        now = time.monotonic()
        waits = [self.alerts.next_tick(now), hooks.next_due()]
        if self._unsampled:
            waits.append(max(0.0, self._samples[-1][0] + _SAMPLE - now))
        return min((wait for wait in waits if wait is not None), default=None)
