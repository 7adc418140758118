"""Pruning: which whole segments are older than the retention, and what is recorded of it.

A segment goes only behind a durable ``prune`` record, oldest first.  The first
segment that stays opens with what it continues, so the chain is verified from there.
"""

from __future__ import annotations

import itertools
import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.record import MAX_LINE, Record, RecordError, decode
from safeclaw.errors import JournalError

#: How long records are kept, in days; SOC 2 reviews look back 90.
RETENTION_DAYS: Final = 100
RETENTION_LEAST: Final = 90


def check(days: int, *, override: bool) -> int:
    """Return ``days``, or raise JournalError when so few need an override."""
    if days < 0:
        raise JournalError(
            f"a retention of {days} days", hint=f"{RETENTION_LEAST} days, or more, are kept"
        )
    if days < RETENTION_LEAST and not override:
        raise JournalError(
            f"a retention of {days} days is under {RETENTION_LEAST}",
            hint="auditors look back 90 days; --override prunes all the same, and is recorded",
        )
    return days


class Plan(msgspec.Struct, frozen=True):
    """What is to be recorded, then the files that may go, oldest first."""

    detail: dict[str, object]
    paths: tuple[Path, ...]

    def carry_out(self) -> None:
        """Delete; the record of it is on disk.  OSError when it cannot be done."""
        for path in self.paths:
            path.unlink(missing_ok=True)
        files.sync_directory(self.paths[0].parent)


def first_record(path: Path) -> Record | None:
    """Return a segment's first record; None when it has no whole line yet."""
    try:
        with path.open("rb") as stream:
            line = stream.readline(MAX_LINE + 2)
        return decode(line[:-1]) if line.endswith(b"\n") else None
    except (FileNotFoundError, RecordError):
        return None


def moment(ts: str) -> datetime:
    """Return the time that a record's ``ts`` says.  ValueError."""
    return datetime.strptime(ts, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)


def plan(directory: Path, now_s: float, days: int, *, override: bool) -> Plan | None:
    """Return what is older than ``days``; None when nothing is.

    A segment is as old as its newest record, which the next one's first dates.

    Raises:
        JournalError: too few days, or the directory cannot be read, or has been changed.
    """
    check(days, override=override)
    limit = datetime.fromtimestamp(now_s, UTC) - timedelta(days=days)
    going: list[Path] = []
    last: Record | None = None
    first: Record | None = None
    try:
        found = files.segments(directory)
    except OSError as error:
        raise JournalError.of(error, directory) from error
    for (_, path), (_, following) in itertools.pairwise(found):
        opening = first_record(following)
        try:
            if opening is None or moment(opening.ts) > limit:
                break
        except ValueError as error:
            raise JournalError(
                f"{following}: its first record has no time", hint="run: safeclaw audit verify"
            ) from error
        first = first or first_record(path)
        going.append(path)
        last = opening
    if not going or last is None or first is None or last.detail is None:
        return None
    detail: dict[str, object] = {
        "first_seq": first.seq,
        "newest": last.ts,
        "override": override,
        "records": last.seq - first.seq,
        "retention_days": days,
        "root": last.detail.get("root"),
        "segments": len(going),
        "size": last.seq,
        "through": going[-1].name,
    }
    return Plan(detail, tuple(going))


def age_s(directory: Path, segment: int, now_s: float) -> float:
    """Return how long ago a segment was begun, in seconds; 0 when that is not known."""
    record = first_record(directory / files.segment_name(segment))
    try:
        return max(0.0, now_s - moment(record.ts).timestamp()) if record is not None else 0.0
    except ValueError:
        return 0.0


def key_age_s(keys: Path, now_s: float) -> float:
    """Return how long ago the signing key was made, in seconds."""
    return max(0.0, now_s - os.stat(keys / files.PRIVATE_KEY).st_mtime)
