"""``safeclaw policy suggest``: from the chain to a policy for the same work."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import cast

import msgspec

from safeclaw.daemon import launching, places
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.daemon.pseudonyms import is_sealed
from safeclaw.errors import CommandError, JournalError, UsageError
from safeclaw.policies import source
from safeclaw.policies.context import Context
from safeclaw.policies.document import Policy
from safeclaw.policies.generalise import Place
from safeclaw.policies.model import Attempt
from safeclaw.policies.observed import Observed, plain, target_of
from safeclaw.policies.suggest import Source, Suggestion, suggest
from safeclaw.sandbox.session import resolve_command


@dataclass
class Recorded:
    """What the chain says about one session."""

    id: str
    agent: str
    ts: str
    workspace: str
    command: tuple[str, ...]
    seen: dict[tuple[str, bytes], int] = field(default_factory=dict[tuple[str, bytes], int])
    refused: int = 0


def sessions(journal: Path, session: str | None, since: str | None) -> list[Recorded]:
    """Return the session asked for, those since then, or the newest.

    Of several, those of the newest one's workspace: a policy is for one.
    Raises JournalError, UsageError.
    """
    found: dict[str, Recorded] = {}
    for record in reader.read(journal, Filter(session=session)):
        if record.type is RecordType.SESSION_START and (since is None or record.ts >= since):
            if session is None and since is None:
                found.clear()
            recorded = _begin(record)
            found[recorded.id] = recorded
        elif record.type is RecordType.DECISION and record.session in found:
            _take(found[record.session], record)
    if not found:
        asked = f"session {session}" if session else "a session" + (" since then" if since else "")
        raise UsageError(f"the journal has no record of {asked}", hint="safeclaw audit show")
    newest = max(found.values(), key=lambda item: item.ts)
    return [item for item in found.values() if item.workspace == newest.workspace]


def _begin(record: Record) -> Recorded:
    detail = record.detail or {}
    words = cast("list[object]", detail.get("command") or [])
    return Recorded(
        id=record.session or "",
        agent=record.agent or "",
        ts=record.ts,
        workspace=plain(str(detail.get("workspace", ""))),
        command=tuple(plain(str(word)) for word in words),
    )


def _take(recorded: Recorded, record: Record) -> None:
    # A name that does not exist tells nothing about what the agent needs.
    # Nor does a pseudonym.
    if (
        is_sealed(record)
        or record.enforced_by == "absent"
        or record.action is None
        or record.target is None
    ):
        return
    if record.decision != "allow" and record.enforced_by != "observe":
        recorded.refused += 1
        return
    key = (record.action, msgspec.json.encode(record.target, order="sorted"))
    recorded.seen[key] = recorded.seen.get(key, 0) + 1


def from_chain(journal: Path, session: str | None, since: str | None) -> Suggestion:
    """Return a suggestion for what the chain recorded.  JournalError, UsageError."""
    found = sessions(journal, session, since)
    newest = max(found, key=lambda item: item.ts)
    if not newest.workspace.startswith("/"):
        raise JournalError(
            f"session {newest.id}: no workspace is recorded",
            hint="it ended before it began; name another: safeclaw policy suggest --session ID",
        )
    place = Place(os.path.realpath(newest.workspace), os.path.realpath(places.home()))
    what = f"session {newest.id} ({newest.agent}, {newest.ts[:10]})"
    if len(found) > 1:
        what = f"{len(found)} sessions, the last {what}"
    return suggest(
        _observed(found),
        place,
        Source(what, sum(item.refused for item in found)),
        context=_context(place, [item.command for item in found]),
        names=_leads_to,
    )


def _observed(found: Iterable[Recorded]) -> list[Observed]:
    counts: dict[tuple[str, bytes], int] = {}
    for recorded in found:
        for key, count in recorded.seen.items():
            counts[key] = counts.get(key, 0) + count
    return [
        Observed(
            Attempt(action, target_of(msgspec.json.decode(target, type=dict[str, object]))), count
        )
        for (action, target), count in sorted(counts.items())
    ]


def _context(place: Place, commands: list[tuple[str, ...]]) -> Callable[[Policy], Context]:
    """Return how a run in the workspace would see a policy."""
    path = os.environ.get("PATH", os.defpath)

    def of(policy: Policy) -> Context:
        found = source.context(
            policy,
            workspace=Path(place.workspace),
            home=Path(place.home),
            path=path,
            resolve=False,
        )
        for command in commands:
            try:
                resolved = resolve_command(command, path, place.workspace)
            except (CommandError, IndexError):
                continue  # it has gone since; what it read stands in the suggestion instead
            found = launching.with_programs(found, resolved, len(command))
        return found

    return of


def _leads_to(name: str) -> str | None:
    """Return the canonical path that a bare program name leads to."""
    import shutil

    directories = [part for part in os.environ.get("PATH", "").split(":") if part.startswith("/")]
    found = shutil.which(name, path=":".join([*directories, *source.SYSTEM_PATH]))
    return None if found is None else os.path.realpath(found)
