"""Segments: walked one after the other, or ahead, in processes of their own.

A segment's first record states the number, the tree and the key that it opens with.  A process
takes that for true and walks the rest, as it would where all before was pruned.  The one walk
over the whole chain still holds each first record against its own rules, and takes over what a
process found only where that began from the very state the walk is in, and met nothing that
hangs on more than that.  All else (a fault, a new key, a prune record, a claim from outside) it
walks itself.  INVARIANT: so the verdict is the same, whoever walked.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import msgspec

from safeclaw.daemon.journal.record import MAX_LINE
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.walk import State, StopError, Walk

if TYPE_CHECKING:
    from concurrent.futures import Executor, Future

#: So many bytes are read at once.
_CHUNK: Final = 1 << 20

#: Where less than this lies between the first segment and the last, processes do not pay.
_LEAST: Final = 96 << 20

#: A segment's number, file, and how much of it is to be walked, in bytes.
Segment = tuple[int, Path, int]


class Stretch(msgspec.Struct, frozen=True):
    """What a process found in a segment in which nothing was wrong."""

    opened: State  # after the first record
    ended: State
    lines: int
    checkpoints: int
    signed: int
    last_ts: str
    notes: list[str]


def walk_segment(
    walk: Walk,
    segment: Segment,
    *,
    opened: Callable[[], bool],
    told: Callable[[int], None],
) -> int:
    """Walk a segment; return the bytes of a torn last line.

    ``opened`` is called after the first line, and says whether the rest is known; ``told``
    now and then, with how many bytes are left.

    Raises:
        StopError: something is wrong; the walk's report says what.
        OSError: it cannot be read.
    """
    walk.number, path, size = segment
    walk.segment, walk.line = path.name, 0
    rest = b""
    with path.open("rb", buffering=0) as stream:
        if os.fstat(stream.fileno()).st_size < size:
            raise walk.stop("the segment shrank while it was read")
        while size > 0 and (chunk := stream.read(min(size, _CHUNK))):
            size -= len(chunk)
            lines = (rest + chunk).split(b"\n")
            rest = lines.pop()
            # INVARIANT: only what more than one chunk brought can be longer than a chunk.
            if len(lines[0] if lines else rest) > MAX_LINE:
                walk.line += 1
                raise walk.stop("the line is too long", seq=walk.report.records)
            for line in lines:
                walk.line += 1
                walk.accept(line, opens=walk.line == 1)
                if walk.line == 1 and opened():
                    return 0
            told(size)
    return len(rest)


def walk_alone(segment: Segment) -> Stretch | None:
    """Walk a segment from what its first record says; None when that is not all it takes."""
    walk = Walk([], None)
    states: list[State] = []

    def opened() -> bool:
        states.append(walk.state())
        return False

    try:
        torn = walk_segment(walk, segment, opened=opened, told=lambda _: None)
    except (StopError, OSError):
        return None
    report = walk.report
    if torn or not states or not walk.plain or report.status is not Status.INTACT:
        return None
    return Stretch(
        opened=states[0],
        ended=walk.state(),
        lines=walk.line,
        checkpoints=report.checkpoints,
        signed=report.signed,
        last_ts=report.last_ts,
        notes=report.notes,
    )


def take_over(walk: Walk, stretch: Stretch | None) -> bool:
    """Have a walk, at a segment's first record, go on from its end; False where it cannot."""
    if stretch is None or stretch.opened != walk.state():
        return False
    # A root that somebody claims within: only who walks there has it.
    if walk.claims and walk.claims[0].checkpoint.size <= stretch.ended.records:
        return False
    walk.resume(stretch.ended)
    report = walk.report
    walk.line = stretch.lines
    report.checkpoints += stretch.checkpoints
    report.signed = max(report.signed, stretch.signed)
    report.last_ts = stretch.last_ts
    report.notes += stretch.notes
    return True


#: Gives what was found ahead in a segment, waiting for it.
Known = Callable[[Segment], Stretch | None]


def jobs_for(found: Sequence[Segment]) -> int:
    """Return how many processes pay for these segments: the CPUs that may be used, or one."""
    if sum(size for _, _, size in found[1:-1]) < _LEAST:
        return 1
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def walked_ahead(found: Sequence[Segment], jobs: int) -> Generator[Known]:
    """Walk the segments between the first and the last in ``jobs`` processes, at most."""
    between = list(found[1:-1])
    if jobs < 2 or not between:
        yield lambda _segment: None
        return
    with contextlib.ExitStack() as stack:
        try:
            pool = stack.enter_context(pool_of(min(jobs, len(between))))
        except (OSError, ImportError):  # no semaphores here, in a container for one
            yield lambda _segment: None
            return
        yield _Ahead(pool, between, jobs).known


@contextlib.contextmanager
def pool_of(jobs: int) -> Generator[Executor]:
    """Give processes, and end them."""
    import multiprocessing
    from concurrent.futures import ProcessPoolExecutor

    # Not forked: who calls may have threads, a progress bar's for one.
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), _begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)


class _Ahead:
    """Keeps so many segments on the way that no process waits, and no more."""

    def __init__(self, pool: Executor, between: list[Segment], jobs: int) -> None:
        self._pool = pool
        self._coming = iter(between)
        self._on_the_way: dict[int, Future[Stretch | None]] = {}
        for _ in range(2 * jobs):
            self._send()

    def _send(self) -> None:
        segment = next(self._coming, None)
        if segment is not None:
            with contextlib.suppress(OSError, RuntimeError):  # no process, or a broken pool
                self._on_the_way[segment[0]] = self._pool.submit(walk_alone, segment)

    def known(self, segment: Segment) -> Stretch | None:
        """Return what was found in a segment, in order."""
        future = self._on_the_way.pop(segment[0], None)
        if future is None:
            return None
        self._send()
        try:
            return future.result()
        except (OSError, RuntimeError):  # its process was killed
            return None


def _begin() -> None:
    """Leave an interrupt from the terminal to the parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
