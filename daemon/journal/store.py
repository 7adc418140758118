"""The writer's hands: batches of lines into segments, checkpoints beside them.

Owned by one :class:`~safeclaw.daemon.journal.journal.Journal`, used under its
commit lock.  Everything that fails is an OSError, after which the store must not
be used again: what a failed write or sync left in the page cache is unknown.
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.recovery import FrontierFile
from safeclaw.errors import JournalError

#: The checkpoint file is replaced at most this often.
PUBLISH_NS: Final = 500_000_000


class Batch(msgspec.Struct):
    """Lines that go into one segment with one write."""

    segment: int
    lines: list[bytes] = msgspec.field(default_factory=lambda: list[bytes]())


class Mark(msgspec.Struct, frozen=True):
    """A signed checkpoint that is to be published once ``size`` records are durable."""

    size: int
    note: str
    frontier: FrontierFile


class Store:
    """The segment being written."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._fd = -1
        self._segment = 0
        self._size = 0
        self.published_ns = 0

    def write(self, batch: Batch) -> None:
        """Append the batch to its segment and make it durable."""
        path = self._directory / files.segment_name(batch.segment)
        if batch.segment != self._segment:
            self.close()
            self._open(path)
            self._segment = batch.segment
        # Someone may have put another file in its place, or written to it.
        status, named = os.fstat(self._fd), os.stat(path, follow_symlinks=False)
        if status.st_size != self._size or (status.st_dev, status.st_ino, 1) != (
            named.st_dev,
            named.st_ino,
            named.st_nlink,
        ):
            raise OSError(errno.ESTALE, f"{path.name} was changed by someone else")
        data = b"\n".join([*batch.lines, b""])
        written = os.write(self._fd, data)
        if written != len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        files.sync(self._fd)
        self._size += written

    def publish(self, mark: Mark) -> bool:
        """Put the latest checkpoint beside the chain; False when it is too early for one."""
        now = time.monotonic_ns()
        if self.published_ns and now - self.published_ns < PUBLISH_NS:
            return False
        cache = msgspec.json.encode(mark.frontier)
        files.replace(self._directory / files.FRONTIER, cache, sync=False)
        files.replace(self._directory / files.CHECKPOINT, mark.note.encode())
        self.published_ns = now
        return True

    def close(self) -> None:
        """Let go of the segment."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1

    def _open(self, path: Path) -> None:
        create = not path.exists()
        try:
            self._fd = files.open_segment(path, create=create)
        except JournalError as error:
            raise OSError(errno.EIO, error.message) from error
        self._size = os.fstat(self._fd).st_size
        if create:
            files.sync_directory(self._directory)
