"""The end of the chain: where a record gets its number, its time and its link.

It belongs to one :class:`~safeclaw.daemon.journal.journal.Journal`, lives as long, and is
used under its append lock.  Nothing here touches the disk: what was appended waits in batches
until :meth:`Tip.take`.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal import retention
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.record import VERSION, Entry, Record, RecordType, Subject, encode
from safeclaw.daemon.journal.recovery import Head
from safeclaw.daemon.journal.store import Batch

#: A wall clock that moves against the boot clock by more than this is a step.
STEP_US: Final = 1_000_000
#: Two clocks are of one moment when they were read within so many nanoseconds.
_APART_NS: Final = 50_000_000


class Tip:
    """See the module.  ``head`` is where the chain ends by now."""

    def __init__(self, head: Head) -> None:
        self.head = head
        #: When the newest record was appended, on the monotonic clock.
        self.appended_ns = time.monotonic_ns()
        self._batches: list[Batch] = [Batch(head.segment)]
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._second: int = -1
        self._second_text = ""
        self._clock_offset: int | None = None
        self._moment = _moment()

    def append(self, entry: Entry) -> int:
        """Append a record and return its number.  RecordError: it has no canonical form."""
        seq = self.head.seq
        record = self.record(entry)
        self.link(encode(record))
        self.head.follow(record)
        self.appended_ns = time.monotonic_ns()
        return seq

    def link(self, line: bytes) -> None:
        """Give a line its place in the chain and in the tree."""
        head = self.head
        leaf = leaf_hash(line)
        head.seq += 1
        head.prev = leaf.hex()
        head.frontier.append(leaf)
        head.offset += len(line) + 1
        head.unsigned += 1
        self._batches[-1].lines.append(line)

    def begin_segment(self) -> None:
        """Have what is appended from here on go into the next segment."""
        head = self.head
        head.segment += 1
        head.offset = 0
        self._batches.append(Batch(head.segment))

    def take(self) -> list[Batch]:
        """Hand over what was appended since the last time, in order."""
        batches = self._batches
        self._batches = [Batch(self.head.segment)]
        return batches

    def record(self, entry: Entry) -> Record:
        """Return the record that an entry would be, next and now."""
        head = self.head
        pid, uid, exe = entry.pid, entry.uid, entry.exe
        subject = None
        if pid is not None or uid is not None or exe is not None:
            subject = Subject(exe=exe, pid=pid, uid=uid)
        ts, boottime = self.now()
        return Record(
            action=entry.action,
            agent=entry.agent,
            attempt=entry.attempt,
            boot_id=self._boot_id,
            boottime_us=boottime,
            chain=head.chain,
            decision=entry.decision,
            detail=entry.detail,
            enforced_by=entry.enforced_by,
            fingerprint=entry.fingerprint,
            latency_ns=entry.latency_ns,
            policy=entry.policy,
            prev=head.prev,
            reason=entry.reason,
            rule=entry.rule,
            seq=head.seq,
            session=entry.session,
            subject=subject,
            target=entry.target,
            ts=ts,
            type=entry.type,
            v=VERSION,
        )

    def now(self) -> tuple[str, int]:
        """Return the time as a record has it, and CLOCK_BOOTTIME, in microseconds.

        It is what :meth:`watch_clock` has seen last: a step that it has not seen is in no record.
        """
        wall, boottime = self._moment
        second, micro = divmod(wall, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        return f"{self._second_text}.{micro:06}Z", boottime

    def watch_clock(self) -> None:
        """Look at the clocks, and record it when the wall clock was set since the last time."""
        self._moment = _moment()
        wall, boottime = self._moment
        offset = wall - boottime
        known = self._clock_offset
        self._clock_offset = offset
        if known is not None and abs(offset - known) > STEP_US:
            detail: dict[str, object] = {"step_us": offset - known}
            self.append(Entry(type=RecordType.CLOCK_STEP, detail=detail))

    def resume_clock(self, last: Record | None) -> None:
        """Watch the clock from where the last writer's last record, if there is one, left it."""
        if last is not None and last.boot_id == self._boot_id:
            with contextlib.suppress(ValueError):  # a time that is none: verify says so
                wall_us = int(retention.moment(last.ts).timestamp() * 1e6)
                self._clock_offset = wall_us - last.boottime_us


def _moment() -> tuple[int, int]:
    """Return the wall clock and CLOCK_BOOTTIME, of one moment, in microseconds.

    A process that is stopped between two readings, or a machine that sleeps, has clocks that do
    not belong together; to a verifier they would be a time that cannot be.
    """
    boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    while True:
        before = boottime
        wall = time.time_ns()
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME)
        if boottime - before < _APART_NS:
            return wall // 1000, boottime // 1000
