"""``safeclaw policy history``: which policies were in force when, from the chain."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import click
import msgspec

from safeclaw.daemon.cli import asking
from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.daemon.peer import user_name


class Held(msgspec.Struct, kw_only=True):
    """A policy that was in force; ``until`` is "" while it is.

    ``what`` is the change it came by: ``first`` (nothing was in force before), ``file``
    (its file has changed), ``rollback``, ``session`` (a session brought it along).
    ``by`` are the users who ordered or approved that.
    """

    policy: str
    sha256: str
    version: str
    since: str
    until: str = ""
    what: str = "file"
    by: list[int] = msgspec.field(default_factory=list[int])
    commit: str = ""
    why: str = ""
    sessions: int = 0


class _History:
    """Grows record by record, oldest first."""

    def __init__(self) -> None:
        self.held: list[Held] = []
        self._last: dict[str, Held] = {}
        self._brought: dict[tuple[str, str], Held] = {}
        self._orders: dict[tuple[str, str], Record] = {}

    def take(self, record: Record) -> None:
        """Take in a record of type policy_load."""
        detail: dict[str, Any] = record.detail or {}
        if record.session is not None:
            self._session(record)
        elif detail.get("event") == "rollback":
            self._orders[str(detail.get("ref")), str(detail.get("proposed"))] = record
        elif detail.get("event") == "loaded" and record.policy is not None:
            self._loaded(record, detail)

    def _loaded(self, record: Record, detail: dict[str, Any]) -> None:
        assert record.policy is not None
        ref, sha256 = str(detail["ref"]), record.policy.sha256
        last, order = self._last.get(ref), self._orders.pop((ref, sha256), None)
        if last is not None:
            last.until = record.ts
        approved = detail.get("approved_by")
        by = [uid for uid in cast("list[Any]", approved or []) if isinstance(uid, int)]
        if order is not None and order.subject is not None and order.subject.uid is not None:
            by.insert(0, order.subject.uid)
        self._last[ref] = held = Held(
            policy=ref,
            sha256=sha256,
            version=record.policy.version,
            since=record.ts,
            what="rollback" if order is not None else "file" if "previous" in detail else "first",
            by=by,
            commit=str(detail.get("commit", "")),
            why=(order.reason if order is not None else record.reason) or "",
        )
        self.held.append(held)

    def _session(self, record: Record) -> None:
        if record.policy is None:
            return
        name, sha256 = record.policy.name, record.policy.sha256
        known = [one for one in self.held if one.sha256 == sha256 and one.what != "session"]
        if known:
            known[-1].sessions += record.attempt is None
            return
        held = self._brought.get((name, sha256))
        if held is None:
            held = self._brought[name, sha256] = Held(
                policy=name,
                sha256=sha256,
                version=record.policy.version,
                since=record.ts,
                what="session",
            )
            self.held.append(held)
        held.until = record.ts
        held.sessions += 1


@click.command(
    name="history",
    help="Which policies were in force when, and how each came to be, from the chain.\n\n"
    "Policies that sessions brought along are listed with their first and last session.",
)
@click.argument("name", required=False)
@common
def history_command(name: str | None, state: Path, as_json: bool) -> int:
    """Print every policy that was in force, oldest first."""
    history = _History()
    for record in reader.read(state / "journal", Filter(type=str(RecordType.POLICY_LOAD))):
        history.take(record)
    chosen = [one for one in history.held if name in (None, one.policy)]
    if as_json:
        for one in chosen:
            click.echo(msgspec.json.encode(one))
        return 0
    if not chosen:
        click.echo("no such policy was in force" if name else "no policy was in force", err=True)
        return 0
    rows: list[tuple[object, ...]] = [
        (
            one.policy,
            one.sha256[:12],
            one.version,
            one.since[:19],
            one.until[:19] if one.until else "in force",
            " ".join([one.what, *(user_name(uid) for uid in one.by)]),
            one.commit[:12] + ("-dirty" if one.commit.endswith("-dirty") else ""),
            one.sessions,
            one.why,
        )
        for one in chosen
    ]
    headings = ("policy", "sha256", "version", "since", "until", "by", "commit", "sessions", "why")
    asking.table(headings, rows)
    return 0
