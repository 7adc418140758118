"""The writer of the journal: the only one, for as long as it is open.

:meth:`Journal.append` gives a record its place, time and link and buffers it;
:meth:`Journal.commit` makes everything appended so far durable with one write
and one fdatasync.  A record counts as recorded only once ``commit`` returned
its number.  The first failed write, sync or check turns the journal faulty for
good: nothing is retried on a descriptor that failed.

The records themselves are made in :mod:`~safeclaw.daemon.journal.tip`, and those the journal
writes about itself in :mod:`~safeclaw.daemon.journal.upkeep`; here are the locks, the
durability and the faults.

Threads: ``append`` and ``tick`` from one thread, ``commit`` from another if
wished (the sync leaves the interpreter to others).
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal import files, retention
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.keys import finish as finish_roll
from safeclaw.daemon.journal.record import (
    MAX_INT,
    Entry,
    RecordError,
    RecordType,
    Template,
)
from safeclaw.daemon.journal.recovery import (
    Head,
    Unfinished,
    find_head,
    last_record,
    set_aside,
)
from safeclaw.daemon.journal.store import PUBLISH_NS, Store
from safeclaw.daemon.journal.tip import Tip
from safeclaw.daemon.journal.upkeep import Upkeep
from safeclaw.errors import JournalError, JournalFaultError

CHECKPOINT_NS: Final = 1_000_000_000
HEARTBEAT_NS: Final = 60_000_000_000
_USUAL: Final = Keeping()


class Journal:
    """An open journal.  Use :meth:`open`; close it, or it ends without a checkpoint."""

    def __init__(
        self, directory: Path, keys: Path, lock: int, head: Head, keeping: Keeping
    ) -> None:
        self._directory = directory
        self._lock_fd = lock
        self._append_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._fault: str | None = None
        self._store = Store(directory)
        self._durable = head.seq - 1
        self._head = head
        self._tip = Tip(head)
        #: How long segments and keys last.
        self.upkeep = Upkeep(directory, keys, self._tip, keeping)
        #: What every entry passes through before it is recorded: pseudonyms.
        self.veil: Callable[[Entry], Entry] = lambda entry: entry

    @classmethod
    def open(
        cls, directory: Path, keys: Path | None = None, *, keeping: Keeping = _USUAL
    ) -> Journal:
        """Open or make the journal in ``directory`` and take its lock.

        ``keys`` is where the signing key is; by default ``keys`` beside the directory.
        ``keeping`` holds from the first record on: that may begin a segment, and prune.
        What this appends (genesis, recovery) is durable when it returns.

        Raises:
            JournalError: no access, a second writer, or a chain that does not hold.
            JournalFaultError: it could not be written to.
        """
        keys_directory = keys or directory.parent / "keys"
        files.make_directory(directory, mode=0o750)
        lock = files.take_lock(directory)
        try:
            found = files.segments(directory)
            head = find_head(directory, found) if found else Head()
            torn = set_aside(directory, head)
            # After the tail is gone: a key that only it certified was never in force.
            finish_roll(directory, keys_directory)
            journal = cls(directory, keys_directory, lock, head, keeping)
        except OSError as error:
            os.close(lock)
            raise JournalFaultError.of(error, directory) from error
        except BaseException:
            os.close(lock)
            raise
        try:
            journal._start(torn)
        except OSError as error:
            journal._release()
            raise JournalFaultError.of(error, directory) from error
        except BaseException:
            journal._release()
            raise
        return journal

    def _start(self, torn: list[dict[str, object]]) -> None:
        head = self._head
        if head.seq == 0:
            if (self._directory / files.CHECKPOINT).exists():
                raise JournalError(
                    f"{self._directory}: a checkpoint, but no records",
                    hint="the segments are gone: restore them, or start another state",
                )
            with self._append_lock:
                self.upkeep.begin_chain(os.urandom(16).hex())
        else:
            # Take up the clock and the age of the segment where the last writer left them.
            age_s = retention.age_s(self._directory, head.segment, time.time_ns() / 1e9)
            self.upkeep.resume_segment(int(age_s * 1e9))
            self._tip.resume_clock(last_record(self._directory, head))
            if head.offset == 0:
                # A crash fell between making this segment and its first record.
                with self._append_lock:
                    self._tip.watch_clock()
                    self.upkeep.open_segment()
        for detail in torn:
            self.append(Entry(type=RecordType.RECOVERY, detail=detail))
        self._recall_fault()
        if head.seq > self._durable + 1:
            self.commit()

    @property
    def chain_id(self) -> str:
        """The chain's identity: 32 hex digits, fixed at genesis."""
        return self._head.chain

    @property
    def directory(self) -> Path:
        """Where the segments are."""
        return self._directory

    @property
    def head(self) -> tuple[int, str]:
        """The last appended record's number and its leaf (hex); not yet durable perhaps."""
        with self._append_lock:
            return self._head.seq - 1, self._head.prev

    @property
    def unfinished(self) -> list[Unfinished]:
        """The sessions that have begun and not ended, as the chain shows them."""
        with self._append_lock:
            return list(self._head.unfinished.values())

    @property
    def durable(self) -> int:
        """The highest number that is on disk."""
        return self._durable

    @property
    def idle_ns(self) -> int:
        """How long ago the newest record was appended."""
        return time.monotonic_ns() - self._tip.appended_ns

    @property
    def fault(self) -> str | None:
        """Why this journal is faulty, or None."""
        return self._fault

    def append(self, entry: Entry) -> int:
        """Buffer a record and return its number.

        Raises:
            JournalFaultError: the journal is faulty.
            RecordError: the entry has no canonical form; nothing was appended.
        """
        with self._append_lock:
            self._check_fault()
            self._tip.watch_clock()
            seq = self._tip.append(self.veil(entry))
            self.upkeep.round_off()
            return seq

    def template(self, entry: Entry) -> Template:
        """Return what :meth:`append_all` makes the lines of such entries with.

        Raises:
            RecordError: the entry has no canonical form, or not every field that changes.
        """
        with self._append_lock:
            return Template(self._tip.record(self.veil(entry)))

    def append_all(self, entries: Iterable[tuple[Template, int, int, int]]) -> int:
        """Buffer records and return the number of the last.

        Each is a template with an attempt's number, pid and latency in ns.

        Raises:
            JournalFaultError: the journal is faulty.
            RecordError: an integer is too large; what stands before it was appended.
        """
        with self._append_lock:
            self._check_fault()
            tip, upkeep, head = self._tip, self.upkeep, self._head
            tip.watch_clock()
            ts, boottime = tip.now()
            for template, attempt, pid, latency in entries:
                if attempt > MAX_INT or latency > MAX_INT:
                    raise RecordError("an integer outside 0..2^53")
                line = template.line(
                    attempt=attempt,
                    boottime_us=boottime,
                    latency_ns=latency,
                    prev=head.prev,
                    seq=head.seq,
                    pid=pid,
                    ts=ts,
                )
                tip.link(line)
                if upkeep.due:
                    upkeep.round_off()
                    # what that appended has its own time, and none after it an earlier one
                    ts, boottime = tip.now()
            tip.appended_ns = time.monotonic_ns()
            upkeep.round_off()
            return head.seq - 1

    def commit(self) -> int:
        """Make everything appended so far durable; return the highest durable number.

        Raises:
            JournalFaultError: it could not be; the journal stays faulty.
        """
        with self._commit_lock:
            with self._append_lock:
                self._check_fault()
                batches = self._tip.take()
                last = self._head.seq - 1
                afterwards, self.upkeep.afterwards = self.upkeep.afterwards, []
                mark, self.upkeep.mark = self.upkeep.mark, None
            try:
                for batch in batches:
                    if batch.lines:
                        self._store.write(batch)
                self._durable = last
                for action in afterwards:
                    action()
                if mark is not None and not self._store.publish(mark):
                    with self._append_lock:
                        if self.upkeep.mark is None:
                            self.upkeep.mark = mark
            except Exception as error:
                # SAFETY: whatever it is, what was taken is not on disk: nothing may follow it.
                said = error.strerror if isinstance(error, OSError) else None
                self._fault = f"{self._directory}: {said or f'{type(error).__name__}: {error}'}"
                files.leave_fault_note(self._directory, self._timestamp(), self._fault)
                raise JournalFaultError(
                    f"the journal cannot be written: {self._fault}",
                    hint="nothing is allowed until it can be; see to the disk, then start again",
                ) from error
            return last

    def tick(self) -> bool:
        """Do what is due by time; return whether there is something to commit.

        A checkpoint when records are older than a second without one; a heartbeat
        and a checkpoint after a minute of silence.  Call it once a second while
        :attr:`dirty`, else when :meth:`next_tick_ns` says.
        """
        with self._append_lock:
            if self._fault is not None:
                return False
            now = time.monotonic_ns()
            if now - self._tip.appended_ns >= HEARTBEAT_NS:
                self._tip.watch_clock()
                self._tip.append(Entry(type=RecordType.HEARTBEAT))
                self.upkeep.checkpoint()
            elif self._head.unsigned and now - self.upkeep.checkpoint_ns >= CHECKPOINT_NS:
                self.upkeep.checkpoint()
            return self._head.seq - 1 > self._durable or self.upkeep.mark is not None

    @property
    def dirty(self) -> bool:
        """Whether there are records that no published checkpoint covers yet."""
        return self._head.unsigned > 0 or self.upkeep.mark is not None

    def next_tick_ns(self) -> int:
        """Return when :meth:`tick` has work next, on the monotonic clock."""
        if self.upkeep.mark is not None:
            return self._store.published_ns + PUBLISH_NS
        if self._head.unsigned:
            return self.upkeep.checkpoint_ns + CHECKPOINT_NS
        return self._tip.appended_ns + HEARTBEAT_NS

    def checkpoint(self) -> None:
        """Append a checkpoint now; the caller commits."""
        with self._append_lock:
            self._check_fault()
            self.upkeep.checkpoint()

    def roll_key(self) -> str:
        """Begin an epoch with a new key and return the certificate; the caller commits.

        The old private key is erased by the commit.

        Raises:
            JournalFaultError: the next key could not be stored; nothing was appended.
        """
        with self._append_lock:
            self._check_fault()
            return self.upkeep.roll_key()

    def prune(self, days: int, *, override: bool = False) -> int:
        """Record what is older than ``days``; the commit deletes it.  Return how many segments.

        Raises:
            JournalError: under 90 days without ``override``.
        """
        with self._append_lock:
            self._check_fault()
            return self.upkeep.prune(days, override=override)

    def close(self) -> None:
        """Sign and commit what is there, and let the next writer in.

        Raises:
            JournalFaultError: the last commit failed; the journal is closed all the same.
        """
        try:
            if self._fault is None and self._lock_fd >= 0:
                if self._head.unsigned:
                    self.checkpoint()
                self._store.published_ns = 0
                self.commit()
        finally:
            self._release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _release(self) -> None:
        self._fault = self._fault or "it is closed"
        self._store.close()
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
        self._lock_fd = -1

    def _check_fault(self) -> None:
        if self._fault is not None:
            raise JournalFaultError(
                f"the journal takes no more records: {self._fault}",
                hint="see to the disk, then restart the broker",
            )

    def _recall_fault(self) -> None:
        """Record the fault that the last writer could only leave a note of."""
        note = files.take_fault_note(self._directory)
        if note:
            at, _, reason = note.partition(" ")
            self.append(Entry(type=RecordType.FAULT, reason=reason, detail={"at": at}))
            self.upkeep.afterwards.append(lambda: files.clear_fault_note(self._directory))
        with contextlib.suppress(OSError):  # without the room, only the note is lost
            files.prepare_fault_note(self._directory)

    @staticmethod
    def _timestamp() -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time_ns() // 10**9))
