"""The writer of the journal: the only one, for as long as it is open.

:meth:`Journal.append` gives a record its place, time and link and buffers it;
:meth:`Journal.commit` makes everything appended so far durable with one write
and one fdatasync.  A record counts as recorded only once ``commit`` returned
its number.  The first failed write, sync or check turns the journal faulty for
good: nothing is retried on a descriptor that failed.

Threads: ``append`` and ``tick`` from one thread, ``commit`` from another if
wished (the sync leaves the interpreter to others).
"""

from __future__ import annotations

import base64
import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal import files, keys, retention
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, SigningKey
from safeclaw.daemon.journal.record import (
    MAX_INT,
    VERSION,
    Entry,
    Record,
    RecordError,
    RecordType,
    Subject,
    Template,
    encode,
)
from safeclaw.daemon.journal.recovery import (
    FrontierFile,
    Head,
    Unfinished,
    find_head,
    last_record,
    set_aside,
)
from safeclaw.daemon.journal.store import PUBLISH_NS, Batch, Mark, Store
from safeclaw.errors import JournalError, JournalFaultError

CHECKPOINT_RECORDS: Final = 1024
CHECKPOINT_NS: Final = 1_000_000_000
HEARTBEAT_NS: Final = 60_000_000_000
SEGMENT_NS: Final = 86_400 * 1_000_000_000
#: A wall clock that moves against the boot clock by more than this is a step.
STEP_US: Final = 1_000_000


def origin(chain: str) -> str:
    """Return the checkpoint origin (and key name) of a chain."""
    return f"safeclaw/{chain}"


class Journal:
    """An open journal.  Use :meth:`open`; close it, or it ends without a checkpoint."""

    def __init__(self, directory: Path, keys: Path, lock: int, head: Head) -> None:
        self._directory = directory
        self._keys = keys
        self._lock_fd = lock
        self._head = head
        self._key: SigningKey | None = None
        self._append_lock = threading.Lock()
        self._commit_lock = threading.Lock()
        self._fault: str | None = None
        self._store = Store(directory)
        self._batches: list[Batch] = [Batch(head.segment)]
        self._mark: Mark | None = None
        self._durable = head.seq - 1
        self._dirty = head.unsigned > 0
        self._since_checkpoint = head.unsigned
        self._checkpoint_ns = self._append_ns = time.monotonic_ns()
        self._segment_ns = self._append_ns
        self._boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._second: int = -1
        self._second_text = ""
        self._clock_offset: int | None = None
        #: What may be done only once all that was appended before it is on disk.
        self._afterwards: list[Callable[[], None]] = []
        self._rolling: str | None = None  # a certificate that is not on disk yet
        self.keep(Keeping())
        #: What every entry passes through before it is recorded: pseudonyms.
        self.veil: Callable[[Entry], Entry] = lambda entry: entry

    @classmethod
    def open(cls, directory: Path, keys: Path | None = None) -> Journal:
        """Open or make the journal in ``directory`` and take its lock.

        ``keys`` is where the signing key is; by default ``keys`` beside the directory.
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
            torn = set_aside(directory, head) if head.torn else None
            # After the tail is gone: a key that only it certified was never in force.
            _finish_roll(directory, keys_directory)
            journal = cls(directory, keys_directory, lock, head)
        except OSError as error:
            os.close(lock)
            raise JournalFaultError(f"{directory}: {error.strerror}") from error
        except BaseException:
            os.close(lock)
            raise
        try:
            journal._start(torn)
        except OSError as error:
            journal._release()
            raise JournalFaultError(f"{directory}: {error.strerror}") from error
        except BaseException:
            journal._release()
            raise
        return journal

    def _start(self, torn: dict[str, object] | None) -> None:
        head = self._head
        if head.seq == 0:
            if (self._directory / files.CHECKPOINT).exists():
                raise JournalError(f"{self._directory}: a checkpoint, but no records")
            head.chain = os.urandom(16).hex()
            self._key = files.new_key(self._keys, origin(head.chain))
            detail: dict[str, object] = {
                "origin": origin(head.chain),
                "public_key": self._key.public.text(),
            }
            self.append(Entry(type=RecordType.GENESIS, detail=detail))
            # From the first moment on, a missing first segment is missed.
            with self._append_lock:
                self._publish()
        elif head.offset == 0:
            # A crash fell between making this segment and its first record.
            self._look_back()
            with self._append_lock:
                self._watch_clock()
                self._begin_segment()
                self._dirty = True
        else:
            self._look_back()
        if torn is not None:
            self.append(Entry(type=RecordType.RECOVERY, detail=torn))
        self._recall_fault()
        if head.seq > self._durable + 1:
            self.commit()

    def keep(self, keeping: Keeping) -> None:
        """Have segments and keys end, and old segments go, as is set."""
        self.segment_bytes = keeping.segment_kib << 10
        self.retention_days = keeping.retention_days
        self.key_seconds = keeping.key_days * 86_400

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
        return time.monotonic_ns() - self._append_ns

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
            self._watch_clock()
            seq = self._append(self.veil(entry))
            self._dirty = True
            self._round_off()
            return seq

    def template(self, entry: Entry) -> Template:
        """Return what :meth:`append_all` makes the lines of such entries with.

        Raises:
            RecordError: the entry has no canonical form, or not every field that changes.
        """
        with self._append_lock:
            return Template(self._record(self.veil(entry)))

    def append_all(self, entries: Iterable[tuple[Template, int, int, int]]) -> int:
        """Buffer records and return the number of the last.

        Each is a template with an attempt's number, pid and latency in ns.

        Raises:
            JournalFaultError: the journal is faulty.
            RecordError: an integer is too large; what stands before it was appended.
        """
        with self._append_lock:
            self._check_fault()
            self._watch_clock()
            head = self._head
            ts, boottime = self._now()
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
                self._link(line)
                self._dirty = True
                if self._since_checkpoint >= CHECKPOINT_RECORDS or (
                    head.offset >= self.segment_bytes
                ):
                    self._round_off()
                    # what that appended has its own time, and none after it an earlier one
                    ts, boottime = self._now()
            self._append_ns = time.monotonic_ns()
            self._round_off()
            return head.seq - 1

    def commit(self) -> int:
        """Make everything appended so far durable; return the highest durable number.

        Raises:
            JournalFaultError: it could not be; the journal stays faulty.
        """
        with self._commit_lock:
            with self._append_lock:
                self._check_fault()
                batches = self._batches
                self._batches = [Batch(self._head.segment)]
                last = self._head.seq - 1
                afterwards, self._afterwards = self._afterwards, []
                mark = self._mark
                self._mark = None
            try:
                for batch in batches:
                    if batch.lines:
                        self._store.write(batch)
                self._durable = last
                for action in afterwards:
                    action()
                if mark is not None and not self._store.publish(mark):
                    with self._append_lock:
                        if self._mark is None:
                            self._mark = mark
            except OSError as error:
                self._fault = f"{self._directory}: {error.strerror or error}"
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
            if now - self._append_ns >= HEARTBEAT_NS:
                self._watch_clock()
                self._append(Entry(type=RecordType.HEARTBEAT))
                self._checkpoint()
            elif self._dirty and now - self._checkpoint_ns >= CHECKPOINT_NS:
                self._checkpoint()
            return self._head.seq - 1 > self._durable or self._mark is not None

    @property
    def dirty(self) -> bool:
        """Whether there are records that no published checkpoint covers yet."""
        return self._dirty or self._mark is not None

    def next_tick_ns(self) -> int:
        """Return when :meth:`tick` has work next, on the monotonic clock."""
        if self._mark is not None:
            return self._store.published_ns + PUBLISH_NS
        if self._dirty:
            return self._checkpoint_ns + CHECKPOINT_NS
        return self._append_ns + HEARTBEAT_NS

    def checkpoint(self) -> None:
        """Append a checkpoint now; the caller commits."""
        with self._append_lock:
            self._check_fault()
            self._checkpoint()

    def roll_key(self) -> str:
        """Begin an epoch with a new key and return the certificate; the caller commits.

        The old private key is erased by the commit.

        Raises:
            JournalFaultError: the next key could not be stored; nothing was appended.
        """
        with self._append_lock:
            self._check_fault()
            return self._roll()

    def prune(self, days: int, *, override: bool = False) -> int:
        """Record what is older than ``days``; the commit deletes it.  Return how many segments.

        Raises:
            JournalError: under 90 days without ``override``.
        """
        with self._append_lock:
            self._check_fault()
            return self._prune(days, override=override)

    def close(self) -> None:
        """Sign and commit what is there, and let the next writer in.

        Raises:
            JournalFaultError: the last commit failed; the journal is closed all the same.
        """
        try:
            if self._fault is None and self._lock_fd >= 0:
                if self._dirty:
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
            raise JournalFaultError(f"the journal takes no more records: {self._fault}")

    # What follows holds the append lock.

    def _round_off(self) -> None:
        """Sign and begin a new segment when enough was appended."""
        if self._since_checkpoint >= CHECKPOINT_RECORDS:
            self._checkpoint()
        if self._head.offset >= self.segment_bytes or (
            self._append_ns - self._segment_ns >= SEGMENT_NS
        ):
            self._rotate()

    def _append(self, entry: Entry) -> int:
        seq = self._head.seq
        record = self._record(entry)
        self._link(encode(record))
        self._head.follow(record)
        self._append_ns = time.monotonic_ns()
        return seq

    def _link(self, line: bytes) -> None:
        """Give a line its place in the chain and in the tree."""
        head = self._head
        leaf = leaf_hash(line)
        head.seq += 1
        head.prev = leaf.hex()
        head.frontier.append(leaf)
        head.offset += len(line) + 1
        self._batches[-1].lines.append(line)
        self._since_checkpoint += 1

    def _now(self) -> tuple[str, int]:
        """Return the time as a record has it, and CLOCK_BOOTTIME in microseconds."""
        second, micro = divmod(time.time_ns() // 1000, 1_000_000)
        if second != self._second:
            self._second = second
            self._second_text = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        return f"{self._second_text}.{micro:06}Z", boottime

    def _record(self, entry: Entry) -> Record:
        """Return the record that an entry would be, next and now."""
        head = self._head
        pid, uid, exe = entry.pid, entry.uid, entry.exe
        subject = None
        if pid is not None or uid is not None or exe is not None:
            subject = Subject(exe=exe, pid=pid, uid=uid)
        ts, boottime = self._now()
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

    def _watch_clock(self) -> None:
        boottime = time.clock_gettime_ns(time.CLOCK_BOOTTIME) // 1000
        offset = time.time_ns() // 1000 - boottime
        known = self._clock_offset
        self._clock_offset = offset
        if known is not None and abs(offset - known) > STEP_US:
            detail: dict[str, object] = {"step_us": offset - known}
            self._append(Entry(type=RecordType.CLOCK_STEP, detail=detail))

    def _sign(self) -> tuple[Checkpoint, str]:
        head = self._head
        if self._key is None:
            self._key = files.load_key(self._keys)
        checkpoint = Checkpoint(origin(head.chain), head.seq, head.frontier.root())
        return checkpoint, self._key.sign(checkpoint.text())

    def _checkpoint(self) -> None:
        if self._key is None:
            self._key = files.load_key(self._keys)
        # Here, since loading a key takes a while; and before the size is signed.
        self._watch_clock()
        checkpoint, note = self._sign()
        detail: dict[str, object] = {
            "note": note,
            "root": base64.b64encode(checkpoint.root).decode(),
            "size": checkpoint.size,
        }
        self._append(Entry(type=RecordType.CHECKPOINT, detail=detail))
        # The published one covers the checkpoint record itself too.
        self._publish()
        self._since_checkpoint = 0
        self._checkpoint_ns = time.monotonic_ns()
        self._dirty = False

    def _publish(self) -> None:
        """Have the next commit put a note over all that was appended beside the chain."""
        _, note = self._sign()
        head = self._head
        nodes = [node.hex() for node in head.frontier.nodes]
        cache = FrontierFile(
            head.chain, head.seq, head.segment, head.offset, head.prev, nodes,
            list(head.unfinished.values()),
        )  # fmt: skip
        self._mark = Mark(head.seq, note, cache)

    def _look_back(self) -> None:
        """Take up the clock and the age of the segment where the last writer left them."""
        now = time.time_ns() / 1e9
        age = retention.age_s(self._directory, self._head.segment, now)
        self._segment_ns = self._append_ns - int(age * 1e9)
        last = last_record(self._directory, self._head)
        if last is not None and last.boot_id == self._boot_id:
            wall_us = int(retention.moment(last.ts).timestamp() * 1e6)
            self._clock_offset = wall_us - last.boottime_us

    def _recall_fault(self) -> None:
        """Record the fault that the last writer could only leave a note of."""
        note = files.take_fault_note(self._directory)
        if note:
            at, _, reason = note.partition(" ")
            self.append(Entry(type=RecordType.FAULT, reason=reason, detail={"at": at}))
            self._afterwards.append(lambda: files.clear_fault_note(self._directory))
        with contextlib.suppress(OSError):  # without the room, only the note is lost
            files.prepare_fault_note(self._directory)

    @staticmethod
    def _timestamp() -> str:
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time_ns() // 10**9))

    def _roll(self) -> str:
        if self._rolling is not None:
            # INVARIANT: one staged key at a time; a second would overwrite the first's.
            return self._rolling
        try:
            new = keys.stage(self._keys, origin(self._head.chain))
        except OSError as error:
            raise JournalFaultError(f"{self._keys}: {error.strerror}") from error
        self._watch_clock()
        checkpoint, _ = self._sign()
        old = self._key
        assert old is not None
        certificate = keys.certify(old, new, checkpoint)
        detail: dict[str, object] = {
            "certificate": certificate,
            "public_key": new.public.text(),
            "root": base64.b64encode(checkpoint.root).decode(),
            "size": checkpoint.size,
        }
        self._append(Entry(type=RecordType.KEY_CHANGE, detail=detail))
        self._key = new
        self._checkpoint()
        self._rolling = certificate
        self._afterwards.append(self._install)
        return certificate

    def _install(self) -> None:
        if self._rolling is not None:
            keys.install(self._directory, self._keys, self._rolling)
            self._rolling = None

    def _prune(self, days: int, *, override: bool = False) -> int:
        plan = retention.plan(self._directory, time.time_ns() / 1e9, days, override=override)
        if plan is None:
            return 0
        self._watch_clock()
        self._append(Entry(type=RecordType.PRUNE, detail=plan.detail))
        self._checkpoint()
        self._afterwards.append(plan.carry_out)
        return len(plan.paths)

    def _rotate(self) -> None:
        head = self._head
        head.segment += 1
        head.offset = 0
        self._segment_ns = self._append_ns
        self._batches.append(Batch(head.segment))
        self._begin_segment()
        self._checkpoint()
        # Neither is worth a fault: the next segment tries again.
        with contextlib.suppress(OSError, JournalError):
            if retention.key_age_s(self._keys, time.time_ns() / 1e9) > self.key_seconds:
                self._roll()
            self._prune(self.retention_days)

    def _begin_segment(self) -> None:
        head = self._head
        if self._key is None:
            self._key = files.load_key(self._keys)
        detail: dict[str, object] = {
            "continues": files.segment_name(head.segment - 1),
            "key": self._key.public.text(),
            "nodes": " ".join(node.hex() for node in head.frontier.nodes),
            "root": base64.b64encode(head.frontier.root()).decode(),
            "size": head.seq,
        }
        self._append(Entry(type=RecordType.ROTATE, detail=detail))


def _finish_roll(directory: Path, keys_directory: Path) -> None:
    """Complete a roll of the key that a crash interrupted."""
    if (keys_directory / keys.NEXT_KEY).exists():
        keys.finish(directory, keys_directory)
