"""Time in words: ``30 days``, ``quarter``, ``yesterday``, ``2026-03-01``.

Everything is UTC, as the records are.  Pure: the present is passed in.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta

from safeclaw.errors import UsageError

_HINT = (
    "say '30 days', '2h', 'today', 'yesterday', 'week', 'month', 'quarter', 'year', "
    "'last quarter', '2026-q1', '2026-03-01'"
)
_UNITS = {
    "second": timedelta(seconds=1),
    "minute": timedelta(minutes=1),
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
    "week": timedelta(weeks=1),
}
_SHORT = {
    "s": "second", "sec": "second", "m": "minute", "min": "minute",
    "h": "hour", "hr": "hour", "d": "day", "w": "week",
}  # fmt: skip
_MONTHS = {"month": 1, "quarter": 3, "year": 12}
_COUNT = re.compile(r"([0-9]{1,6})\s*([a-z]+?)s?(?:\s+ago)?")
_QUARTER = re.compile(r"([0-9]{4})-?q([1-4])")


@dataclass(frozen=True)
class Period:
    """From ``since`` up to, not including, ``until``; None is open."""

    since: datetime | None = None
    until: datetime | None = None

    def text(self) -> str:
        """Return the period for a person."""
        begin, end = (
            stamp(moment)[:19].replace("T", " ") if moment is not None else ""
            for moment in (self.since, self.until)
        )
        match bool(begin), bool(end):
            case True, True:
                return f"from {begin} to {end} UTC"
            case True, False:
                return f"from {begin} UTC on"
            case False, True:
                return f"before {end} UTC"
            case _:
                return "of all times"


def stamp(moment: datetime) -> str:
    """Return a time as records write it: what sorts as text sorts as time."""
    # not strftime, which writes the year 26 with two digits
    return moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


def parse(since: str | None, until: str | None, now: datetime) -> Period:
    """Return the period that two words say.

    A word for a stretch of time (``quarter``, ``2026-q1``, ``yesterday``) as
    ``since`` alone means that stretch up to now; as ``until`` it means its begin.

    Raises:
        UsageError: a word that says no time, or an end before the begin.
    """
    begin = moment(since, now) if since is not None else None
    end = moment(until, now) if until is not None else None
    if begin is not None and end is not None and end <= begin:
        raise UsageError(f"--until {until} is not after --since {since}", hint=_HINT)
    if begin is not None and begin > now:
        raise UsageError(f"--since {since} is in the future", hint=_HINT)
    return Period(begin, end)


def moment(words: str, now: datetime) -> datetime:
    """Return the time that ``words`` say.

    Raises:
        UsageError: none that is known.
    """
    text = " ".join(words.lower().split())
    midnight = datetime.combine(now.date(), time(), UTC)
    match text:
        case "now":
            return now
        case "today":
            return midnight
        case "yesterday":
            return midnight - timedelta(days=1)
        case "week":
            return midnight - timedelta(days=midnight.weekday())
        case "month":
            return midnight.replace(day=1)
        case "quarter":
            return midnight.replace(day=1, month=(midnight.month - 1) // 3 * 3 + 1)
        case "year":
            return midnight.replace(day=1, month=1)
        case "last week" | "last month" | "last quarter" | "last year":
            word = text.removeprefix("last ")
            return moment(word, moment(word, now) - timedelta(days=1))  # the one before this one
        case _:
            pass
    try:
        return _counted(text, now) or _dated(text)
    except (ValueError, OverflowError) as error:
        raise UsageError(f"{words!r} says no time", hint=_HINT) from error


def _counted(text: str, now: datetime) -> datetime | None:
    found = _COUNT.fullmatch(text)
    if found is None:
        return None
    count, unit = int(found[1]), _SHORT.get(found[2], found[2])
    if unit in _UNITS:
        return now - count * _UNITS[unit]
    months = now.year * 12 + now.month - 1 - count * _MONTHS.get(unit, 0)
    if unit not in _MONTHS:
        raise ValueError(unit)
    # The 31st has no place in every month: its last day then.
    for day in range(now.day, 27, -1):
        try:
            return now.replace(year=months // 12, month=months % 12 + 1, day=day)
        except ValueError:
            continue
    return now.replace(year=months // 12, month=months % 12 + 1)


def _dated(text: str) -> datetime:
    quarter = _QUARTER.fullmatch(text)
    if quarter is not None:
        return datetime(int(quarter[1]), int(quarter[2]) * 3 - 2, 1, tzinfo=UTC)
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}", text):
        text += "-01"
    if re.fullmatch(r"[0-9]{4}-[0-9]{2}-[0-9]{2}", text):
        return datetime.combine(date.fromisoformat(text), time(), UTC)
    found = datetime.fromisoformat(text.upper())
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)
