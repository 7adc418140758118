"""Records as one line of text for a person; everything unprintable is escaped."""

from __future__ import annotations

import shlex
from typing import cast

from safeclaw.daemon.journal.record import Record
from safeclaw.policies.model import command_line, is_seen


def safe(text: str) -> str:
    r"""Return ``text`` with what could move a cursor or reorder a line as escapes.

    Recorded text is printable already; a chain that someone else wrote need not be.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        char if is_seen(char) else char.encode("unicode_escape").decode() for char in text
    )


def target_text(target: dict[str, object]) -> str:
    """Return a record's target as :func:`safeclaw.policies.model.describe` shows it."""
    match target:
        case {"path": path, "to": to}:
            return f"{shlex.quote(str(path))} -> {shlex.quote(str(to))}"
        case {"path": path}:
            return shlex.quote(str(path))
        case {"program": program, "argv": argv} if isinstance(argv, list):
            return command_line(str(program), [str(word) for word in cast("list[object]", argv)])
        case {"protocol": protocol, "address": address, "port": port}:
            literal = f"[{address}]" if ":" in str(address) else address
            return f"{protocol}:{literal}:{port}"
        case {"socket": path}:
            return shlex.quote(str(path))
        case {"what": what}:
            return str(what)
        case _:
            return " ".join(f"{key}={value}" for key, value in target.items())


def let_through(record: Record) -> bool:
    """Whether what was decided against was only observed, and done all the same."""
    return record.decision == "deny" and record.enforced_by == "observe"


def summary(record: Record) -> str:
    """Return what a record says, in one line."""
    words: list[str] = [record.decision or record.type]
    if let_through(record):
        words = ["would", "deny"]
    if record.action is not None:
        words.append(record.action)
    elif record.decision is not None:
        words.insert(0, record.type)
    if record.target is not None:
        words.append(target_text(record.target))
    if record.enforced_by == "absent":
        words.append("(not there)")
    if record.decision is None and record.detail is not None and record.type != "checkpoint":
        words += [f"{k}={v}" for k, v in record.detail.items() if not k.startswith("sealed")]
    if record.type == "checkpoint" and record.detail is not None:
        words.append(f"of {record.detail.get('size')} records")
    if record.rule is not None:
        words.append(f"[{record.rule}]")
    if record.reason is not None:
        words.append(record.reason)
    return safe(" ".join(words))
