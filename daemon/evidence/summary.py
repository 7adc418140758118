"""What happened in a period: counts, ratios, and the policies that were in force.

One pass; memory grows with the number of agents, rules and policies, and for
targets not at all: beyond :data:`TARGETS_MAX` the rare ones are dropped, and said.
"""

from __future__ import annotations

import re
from collections import Counter
from datetime import timedelta
from pathlib import Path
from typing import Final, cast

import msgspec

from safeclaw.daemon.evidence.selection import Pass, Query
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.daemon.journal.retention import moment
from safeclaw.daemon.journal.text import let_through, target_text

TARGETS_MAX: Final = 20_000
_TOP: Final = 10
#: The id of a rule that stands in a policy file, its own or one that it extends.
_WRITTEN: Final = re.compile(r"(?!runtime:).+:[0-9]+")
#: Denials rise when the last week has half as many again as the one before, and at least ten.
_WEEK: Final = timedelta(days=7)


class Share(msgspec.Struct, frozen=True):
    """Something that was decided about, and how often."""

    name: str
    allowed: int
    denied: int
    observed: int = 0


class Force(msgspec.Struct, frozen=True):
    """A policy, and when it was in force; ``rules`` is None when no record says how many.

    ``rules_used`` is how many of them decided something; ``used`` are the ids of all that
    did, those besides that stand in no policy file included.
    """

    name: str
    version: str
    sha256: str
    first: str
    last: str
    decisions: int
    rules: int | None
    rules_used: int
    used: list[str] = []


class Summary(msgspec.Struct, frozen=True):
    """The figures of a period."""

    chain: str
    query: dict[str, str]
    first_ts: str
    last_ts: str
    records: int
    evaluations: int
    allowed: int
    denied: int
    #: Decided against, and let through all the same: the session was only observed.
    observed: int
    sessions: int
    top_denied_actions: list[tuple[str, int]]
    top_denied_targets: list[tuple[str, int]]
    targets_complete: bool
    agents: list[Share]
    rules: list[Share]
    events: dict[str, int]
    days: list[Share]
    policies: list[Force]
    drift: list[str]

    @property
    def deny_ratio(self) -> float:
        """Denied of all evaluations, 0 to 1."""
        return self.denied / self.evaluations if self.evaluations else 0.0


class _Policy:
    """What is known of one policy hash."""

    def __init__(self, record: Record) -> None:
        assert record.policy is not None
        self.ref = record.policy
        self.first = self.last = record.ts
        self.decisions = 0
        self.rules: int | None = None
        self.used: set[str] = set()

    @property
    def written(self) -> int:
        """How many rules of the policy, and of those it extends, decided something."""
        return sum(_WRITTEN.fullmatch(rule) is not None for rule in self.used)


class _Tally:
    """The figures while they grow."""

    def __init__(self) -> None:
        self.decided: Counter[str] = Counter()
        self.denied_actions: Counter[str] = Counter()
        self.denied_targets: Counter[str] = Counter()
        self.complete = True
        self.agents: Counter[tuple[str, str]] = Counter()
        self.rules: Counter[tuple[str, str]] = Counter()
        self.days: Counter[tuple[str, str]] = Counter()
        self.events: Counter[str] = Counter()
        self.policies: dict[str, _Policy] = {}
        self.first = self.last = ""
        self.observed_sessions = 0
        self.missing: Counter[str] = Counter()  # layers, by the sessions without them

    def take(self, record: Record) -> None:
        self.first = self.first or record.ts
        self.last = record.ts
        self.events[record.type] += 1
        if record.policy is not None:
            self._policy(record)
        if record.type is RecordType.SESSION_START:
            self._started(record.detail or {})
        if record.type is not RecordType.DECISION:
            return
        decision = "allow" if record.decision == "allow" else "deny"
        if let_through(record):
            decision = "observe"
        self.decided[decision] += 1
        self.agents[record.agent or "?", decision] += 1
        self.rules[record.rule or "?", decision] += 1
        self.days[record.ts[:10], decision] += 1
        if decision == "deny":
            self.denied_actions[record.action or "?"] += 1
            self.denied_targets[target_text(record.target or {})] += 1
            if len(self.denied_targets) > TARGETS_MAX:
                self.complete = False
                self.denied_targets = Counter(dict(self.denied_targets.most_common(100)))

    def _started(self, detail: dict[str, object]) -> None:
        self.observed_sessions += detail.get("observe") is True
        walls = detail.get("walls")
        if isinstance(walls, dict):
            missing = cast("dict[str, object]", walls).get("missing")
            if isinstance(missing, list):
                self.missing.update(str(layer) for layer in cast("list[object]", missing))

    def _policy(self, record: Record) -> None:
        assert record.policy is not None
        known = self.policies.get(record.policy.sha256)
        if known is None:
            known = self.policies[record.policy.sha256] = _Policy(record)
        known.last = record.ts
        if record.type is RecordType.DECISION:
            known.decisions += 1
            known.used.add(record.rule or "?")
        if record.type is RecordType.POLICY_LOAD:
            rules = (record.detail or {}).get("rules")
            known.rules = rules if isinstance(rules, int) else None

    def drift(self) -> list[str]:
        """Return what about the policies, and how far they held, an auditor would ask about."""
        said: list[str] = []
        if self.observed_sessions or self.decided["observe"]:
            said.append(
                f"{self.observed_sessions} sessions were only observed: in the period, "
                f"{self.decided['observe']} attempts that the policy denies were let through"
            )
        for layer, count in sorted(self.missing.items()):
            said.append(f"{count} sessions ran without {layer}")
        versions: dict[tuple[str, str], set[str]] = {}
        for policy in self.policies.values():
            key = (policy.ref.name, policy.ref.version)
            versions.setdefault(key, set()).add(policy.ref.sha256)
        for (name, version), hashes in sorted(versions.items()):
            if len(hashes) > 1:
                said.append(
                    f"policy {name} changed {len(hashes) - 1} times without a new version "
                    f"(still {version or 'none'})"
                )
        for policy in self.policies.values():
            if policy.rules is not None and policy.decisions and policy.written < policy.rules:
                said.append(
                    f"policy {policy.ref.name} {policy.ref.sha256[:12]}: "
                    f"{policy.rules - policy.written} of {policy.rules} rules were never used"
                )
        rising = self._rising()
        return [*said, rising] if rising else said

    def _rising(self) -> str | None:
        if not self.last:
            return None
        end = moment(self.last)
        denied = {day: count for (day, decision), count in self.days.items() if decision == "deny"}

        def between(begin: int, until: int) -> int:
            days = {(end - timedelta(days=n)).strftime("%Y-%m-%d") for n in range(begin, until)}
            return sum(count for day, count in denied.items() if day in days)

        now, before = between(0, _WEEK.days), between(_WEEK.days, 2 * _WEEK.days)
        if not before and moment(self.first) > end - _WEEK:
            return None  # there is no week before to compare with
        if now >= 10 and now * 2 >= before * 3:
            return f"denials rise: {now} in the last week, {before} in the one before"
        return None


def _shares(counted: Counter[tuple[str, str]]) -> list[Share]:
    names = sorted({name for name, _ in counted})
    return [
        Share(name, *(counted[name, decision] for decision in ("allow", "deny", "observe")))
        for name in names
    ]


def summarize(directory: Path, query: Query) -> Summary:
    """Return the figures of the records that match.

    Raises:
        JournalError: there is no journal, or a line of it is no record.
    """
    walked = Pass(directory, query)
    tally = _Tally()
    for found in walked.found():
        tally.take(found.record)
    shares = sorted(
        _shares(tally.rules), key=lambda share: -(share.allowed + share.denied + share.observed)
    )
    policies = [
        Force(
            name=policy.ref.name,
            version=policy.ref.version,
            sha256=policy.ref.sha256,
            first=policy.first,
            last=policy.last,
            decisions=policy.decisions,
            rules=policy.rules,
            rules_used=policy.written,
            used=sorted(policy.used),
        )
        for policy in tally.policies.values()
    ]
    return Summary(
        chain=walked.chain,
        query=query.fields(),
        first_ts=tally.first,
        last_ts=tally.last,
        records=walked.count,
        evaluations=tally.decided.total(),
        allowed=tally.decided["allow"],
        denied=tally.decided["deny"],
        observed=tally.decided["observe"],
        sessions=tally.events[RecordType.SESSION_START],
        top_denied_actions=tally.denied_actions.most_common(_TOP),
        top_denied_targets=tally.denied_targets.most_common(_TOP),
        targets_complete=tally.complete,
        agents=_shares(tally.agents),
        rules=shares,
        events={str(kind): count for kind, count in sorted(tally.events.items())},
        days=_shares(tally.days),
        policies=policies,
        drift=tally.drift(),
    )
