"""The program that reads the journal out to one person: started by the broker, as its user.

Its standard input is that person's socket.  It sends records in batches (JSON arrays of
their lines), oldest first, then a reply that ends them.  It holds a bounded amount of the
journal at any time, goes no faster than it is read, and ends when nobody reads any more.
"""

from __future__ import annotations

import collections
import contextlib
import os
import socket
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import msgspec

from safeclaw.daemon import control
from safeclaw.daemon.channel import Channel
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import Record
from safeclaw.errors import JournalError
from safeclaw.sandbox.linux import drop_capabilities

#: How many bytes of records a batch has; it then fits into a packet.
_BATCH = 24 * 1024
#: How much is held for ``last``, and how long the reader may let it wait, in seconds.
_HELD_MAX = 64 * 1024 * 1024
_PATIENCE = 60.0


def own(record: Record, uid: int) -> bool:
    """Whether a record is of a session of that user."""
    subject = record.subject
    return record.session is not None and subject is not None and subject.uid == uid


def chosen(journal: Path, uid: int | None, request: control.Records) -> Iterator[bytes]:
    """Yield the lines that a user may see (None: all) and asks for.  JournalError."""
    # Decoding costs a hundred times what searching does.  Text may look like the mark.
    mark = b"" if uid is None else b'"uid":%d' % uid
    wanted = Filter(
        agent=request.agent,
        decision=request.decision,
        action=request.action,
        session=request.session,
        type=request.kind,
        since=request.since,
        until=request.until,
    )
    for path, number, line in reader.lines(journal):
        if mark not in line:
            continue
        record = reader.record_of(path, number, line)
        if uid is not None and not own(record, uid):
            continue
        if wanted.passes(record):
            yield line


def newest(lines: Iterable[bytes], last: int) -> Iterator[bytes]:
    """Yield the last lines, as many as are asked for, and fit into memory."""
    held: collections.deque[bytes] = collections.deque()
    size = 0
    for line in lines:
        held.append(line)
        size += len(line)
        while len(held) > last or size > _HELD_MAX:
            size -= len(held.popleft())
    yield from held


def send(lines: Iterable[bytes], channel: Channel) -> int:
    """Send lines in batches; return how many.  OSError when they are not read."""
    batch: list[bytes] = []
    size = count = 0
    for line in lines:
        if batch and size + len(line) > _BATCH:
            channel.send(b"[" + b",".join(batch) + b"]", _PATIENCE)
            batch, size = [], 0
        batch.append(line)
        size += len(line) + 1
        count += 1
    if batch:
        channel.send(b"[" + b",".join(batch) + b"]", _PATIENCE)
    return count


def main(journal: str, who: str, wanted: str) -> int:
    """Read out; ``who`` is a uid, or ``-`` for somebody who may read everything."""
    # Where it may; under systemd the broker may not, and has next to none to lose.
    with contextlib.suppress(OSError):
        drop_capabilities()
    with contextlib.suppress(OSError):
        os.nice(10)
    with contextlib.suppress(OSError):  # what serves one person goes before the broker does
        Path("/proc/self/oom_score_adj").write_text("0")
    request = msgspec.json.decode(wanted, type=control.Records)
    channel = Channel(socket.socket(fileno=0), message_max=control.MESSAGE_MAX)
    uid = None if who == "-" else int(who)
    try:
        lines = chosen(Path(journal), uid, request)
        if request.last is not None:
            lines = newest(lines, request.last)
        count = send(lines, channel)
        reply = control.Reply({"records": count, "own": uid is not None})
    except JournalError as problem:
        reply = control.Reply(error=problem.message, hint=problem.hint)
    except OSError:
        return 0  # nobody reads it
    with contextlib.suppress(OSError):
        channel.send(control.encode(reply), _PATIENCE)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
