"""Reading a journal back: a stream of records, filtered.

Reading shows what is written and checks only that each line is a record;
whether the chain holds is :mod:`safeclaw.daemon.journal.verifier`'s word.
"""

from __future__ import annotations

import importlib
import os
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.filter import EVERY, Filter
from safeclaw.daemon.journal.record import MAX_LINE, Record, RecordError, decode
from safeclaw.errors import JournalError


def lines(directory: Path) -> Iterator[tuple[Path, int, bytes]]:
    """Yield every complete line with its segment and line number (from 1).

    Raises:
        JournalError: there is no journal, or it cannot be read.
    """
    try:
        found = files.segments(directory) if directory.exists() else []
        if not found:
            raise JournalError(f"{directory}: no journal here", hint="give --state DIR")
        begun = False
        for _, path in found:
            try:
                stream = path.open("rb")
            except FileNotFoundError:
                if begun:
                    raise
                continue  # it was pruned just now; what is left begins further on
            begun = True
            with stream:
                number = 0
                while (line := stream.readline(MAX_LINE + 2)).endswith(b"\n"):
                    number += 1
                    yield path, number, line[:-1]
    except PermissionError as error:
        raise JournalError(
            f"{error.filename or directory}: {error.strerror}",
            hint="the system's journal is for root and members of the group safeclaw-audit",
        ) from error
    except OSError as error:
        raise JournalError.of(error, error.filename or directory) from error


def record_of(path: Path, number: int, line: bytes) -> Record:
    """Return the record of a line.  JournalError, with its place."""
    try:
        return decode(line)
    except RecordError as error:
        raise JournalError(
            f"{path}:{number}: {error.message}", hint="run: safeclaw audit verify"
        ) from error


def read(directory: Path, wanted: Filter = EVERY, *, last: int | None = None) -> Iterator[Record]:
    """Yield the records that pass the filter, oldest first; ``last`` keeps the newest N.

    Raises:
        JournalError: there is no journal, it cannot be read, or a line is no record.
    """

    def chosen() -> Iterator[Record]:
        for path, number, line in lines(directory):
            record = record_of(path, number, line)
            if wanted.passes(record):
                yield record

    if last is None:
        yield from chosen()
    else:
        yield from deque(chosen(), maxlen=last)


def session_segments(directory: Path, session: str) -> Iterator[list[Record]]:
    """Yield a session's records segment by segment, the newest segment first.

    Raises:
        JournalError: as :func:`read`.
    """
    # Canonical JSON has one spelling, and decoding costs a hundred times what searching does.
    mark = b'"session":"%b"' % session.encode()
    try:
        for _, path in reversed(files.segments(directory)):
            with path.open("rb") as stream:
                found = [
                    record_of(path, number, line[:-1])
                    for number, line in enumerate(stream, 1)
                    if mark in line and line.endswith(b"\n")
                ]
            # An agent's own words may look like the mark.
            yield [record for record in found if record.session == session]
    except OSError as error:
        raise JournalError.of(error, error.filename or directory) from error


def follow(directory: Path, wanted: Filter = EVERY, *, last: int = 10) -> Iterator[Record]:
    """Yield the newest ``last`` records that pass the filter, then every new one, for ever.

    Raises:
        JournalError: as :func:`read`.
    """
    pyinotify: Any = importlib.import_module("pyinotify")  # it has no types
    pyinotify.log.setLevel("CRITICAL")  # what cannot be watched cannot be read, which is said

    try:
        manager = pyinotify.WatchManager()
    except OSError as problem:
        raise JournalError(
            f"{directory}: cannot be watched: {problem}",
            hint="raise the sysctl fs.inotify.max_user_instances, or use: safeclaw audit show",
        ) from problem
    try:
        # Watched before it is read: what is written in between wakes us.
        events = pyinotify.IN_MODIFY | pyinotify.IN_CREATE
        try:
            manager.add_watch(str(directory), events, quiet=False)
        except pyinotify.WatchManagerError as problem:
            next(lines(directory), None)  # what cannot be read says so itself
            raise JournalError(
                f"{directory}: cannot be watched: {problem}",
                hint="raise the sysctl fs.inotify.max_user_watches, or use: safeclaw audit show",
            ) from problem
        newest: deque[Record] = deque(maxlen=last)
        segment, number, offset = 0, 0, 0
        for path, number, line in lines(directory):
            if number == 1:
                segment, offset = files.segment_number(path.name), 0
            offset += len(line) + 1
            record = record_of(path, number, line)
            if wanted.passes(record):
                newest.append(record)
        yield from newest
        while True:
            path = directory / files.segment_name(segment)
            # Before the rest of this one is read: nothing more is written to it then.
            complete = (directory / files.segment_name(segment + 1)).exists()
            with path.open("rb") as stream:
                stream.seek(offset)
                while (line := stream.readline(MAX_LINE + 2)).endswith(b"\n"):
                    offset += len(line)
                    number += 1
                    record = record_of(path, number, line[:-1])
                    if wanted.passes(record):
                        yield record
            if complete:
                segment, number, offset = segment + 1, 0, 0
                continue
            os.read(manager.get_fd(), 1 << 16)
    except OSError as error:
        raise JournalError.of(error, error.filename or directory) from error
    finally:
        manager.close()
