"""What happens to the policies in force, each as a value that can be recorded.  Pure."""

from __future__ import annotations

import enum

import msgspec

from safeclaw.daemon.archive import Found, Version
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.policies.model import printable

#: How many findings of a comparison a record holds.
_FINDINGS_MAX = 20
_FINDING_MAX = 500


class Event(enum.StrEnum):
    """What has happened.  ``detail.event`` of a record."""

    LOADED = "loaded"  # it is in force from now on
    INVALID = "invalid"  # it cannot be read: what was in force stays
    PENDING = "pending"  # it may be wider, and waits for two people
    APPROVED = "approved"  # one of them has said yes
    REFUSED = "refused"  # somebody has said no
    WITHDRAWN = "withdrawn"  # its file says something else now
    ROLLBACK = "rollback"  # somebody puts an earlier text back
    RULE = "rule"  # wider policies need two people from now on, or do so no more


class Change(msgspec.Struct, frozen=True, kw_only=True):
    """One thing that has happened to what ``ref`` stands for.

    ``old`` is what was in force; ``new`` what it is about.  ``found`` is set where that comes
    into force.  ``wider`` are findings of a comparison.
    """

    event: Event
    ref: str = ""
    old: Version | None = None
    new: Version | None = None
    found: Found | None = None
    reason: str = ""
    by: int | None = None
    pid: int | None = None
    approved_by: tuple[int, ...] = ()
    commit: str = ""
    wider: tuple[str, ...] = ()
    on: bool | None = None

    def entry(self) -> Entry:
        """Return the record of it: both hashes, who, and the commit where there is one."""
        detail: dict[str, object] = {"event": self.event.value}
        if self.ref:
            detail["ref"] = self.ref
        if self.old is not None:
            detail["previous"] = self.old.sha256
        if self.found is not None:
            detail["rules"] = len(self.found.policy.rules)
        elif self.new is not None:
            detail["proposed"] = self.new.sha256
        if self.by is not None:
            detail["by"] = self.by
        if self.approved_by:
            detail["approved_by"] = list(self.approved_by)
        if self.commit:
            detail["commit"] = self.commit
        if self.wider:
            shown = [printable(text)[:_FINDING_MAX] for text in self.wider[:_FINDINGS_MAX]]
            detail["wider"] = shown
        if self.on is not None:
            detail["on"] = self.on
        # A record names the policy that is in force: not one that only waits to be.
        policy = self.new if self.found is not None else self.old
        no = self.event in (Event.INVALID, Event.REFUSED)
        return Entry(
            type=RecordType.POLICY_LOAD,
            policy=None if policy is None else policy.ref,
            uid=self.by,
            pid=self.pid,
            decision="deny" if no else None,
            reason=printable(self.reason) or None,
            detail=detail,
        )
