"""Whether a journal is what was written: the files, the anchors, and the verdict.

Needs nothing but the files and, for more than inner consistency, an anchor:
something kept where whoever could rewrite the files could not reach.  Streams;
memory does not grow with the chain.  The rules for records are in
:mod:`safeclaw.daemon.journal.walk`; those for files are:

1. Every line ends with a newline.
2. Segments count up by one, from 1, or from what the last ``prune`` record,
   which a checkpoint covers, says is left.
3. The chain may be longer than a checkpoint says, never shorter.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from safeclaw.daemon.journal import files, reader, stretch
from safeclaw.daemon.journal.copied import Copied
from safeclaw.daemon.journal.cosignature import WitnessKey, cosigned_at
from safeclaw.daemon.journal.keys import read_keyring
from safeclaw.daemon.journal.note import NoteError, PublicKey
from safeclaw.daemon.journal.record import RecordError, decode
from safeclaw.daemon.journal.report import Anchor, Report, Status
from safeclaw.daemon.journal.walk import StopError, Walk
from safeclaw.errors import JournalError

#: How often a verification is begun again because a writer came or pruned beneath it.
_RETRIES = 3

#: What an anchor is called that is nothing but the chain's public keys.
PUBLIC_KEY: Final = "public key"


class Claims(NamedTuple):
    """Checkpoints that the chain has to agree with, and the witnesses who are to have signed."""

    checkpoints: Sequence[tuple[str, str]]
    cosigners: Sequence[WitnessKey]


#: Told how many bytes were walked, of how many.
Progress = Callable[[int, int], None]


class Pace(NamedTuple):
    """Who is told how far it is, and how many processes walk; None: as many as pay."""

    progress: Progress | None
    jobs: int | None


def verify(
    directory: Path,
    *,
    public_key: PublicKey | Sequence[PublicKey] | None = None,
    checkpoints: Sequence[tuple[str, str]] = (),
    cosigners: Sequence[WitnessKey] = (),
    heard: Callable[[], Iterable[tuple[int, str]]] | None = None,
    progress: Progress | None = None,
    jobs: int | None = 1,
) -> Report:
    """Return the verdict on the journal in ``directory``.

    ``heard`` gives journald's word, from its beginning: (sequence, leaf in hex), in order.
    ``public_key`` (the first epoch's, or those of several, oldest first) and
    ``checkpoints`` (name and signed note) are anchors: they count only if they were
    kept where the journal's owner could not change them.  ``cosigners`` are the witnesses
    of whom at least one has to have cosigned one of the checkpoints.  ``jobs`` is how many
    processes walk at most; None: as many as pay.
    """
    given = [public_key] if isinstance(public_key, PublicKey) else list(public_key or ())
    left = _RETRIES
    while True:
        left -= 1
        seen = _seen(directory)
        copied = Copied(heard()) if heard is not None else None
        walk = Walk(given, copied)
        with contextlib.suppress(StopError):
            _walk(walk, directory, Claims(checkpoints, cosigners), Pace(progress, jobs))
        if walk.report.status is Status.INTACT or not left or not _moved(seen, _seen(directory)):
            break
    with contextlib.suppress(StopError):
        if walk.report.status is not Status.INTACT:
            raise StopError
        if copied is not None:
            walk.report.notes += copied.notes(walk.report.pruned)
        if copied is not None and copied.matched:
            walk.report.anchors.append(
                Anchor(
                    f"journald: {copied.matched} records with the same hash",
                    "records that journald has forgotten or never got, and root, who could "
                    "write to both",
                )
            )
    return walk.report


class _Seen(NamedTuple):
    """Whether a writer is at work, and the bytes of each segment, by number."""

    live: bool
    sizes: dict[int, int]


def _seen(directory: Path) -> _Seen:
    live = files.is_locked(directory)
    sizes: dict[int, int] = {}
    with contextlib.suppress(OSError):
        for number, path in files.segments(directory):
            sizes[number] = path.stat().st_size
    return _Seen(live, sizes)


def _moved(before: _Seen, now: _Seen) -> bool:
    """Whether a writer has begun since, pruned, or set a torn tail aside.

    That one which was there before appends says nothing against what was found.
    """
    if any(now.sizes.get(number, -1) < size for number, size in before.sizes.items()):
        return True
    return not before.live and now != before


def _ring(directory: Path) -> list[PublicKey]:
    """Return the keys that the keyring certifies; none when there is no whole one."""
    try:
        keyring = read_keyring(directory)
        return keyring.keys() if keyring is not None else []
    except (JournalError, NoteError):
        return []  # what cannot be trusted is not there: the walk says what that leaves open


def _walk(
    walk: Walk,
    directory: Path,
    claims: Claims,
    pace: Pace,
) -> None:
    report = walk.report
    # The order matters beside a live writer: first what it signed, then how far it got, then
    # its keys.  A key is in the keyring before the segments are pruned that say where it is from.
    latest: str | None = None
    try:
        live = files.is_locked(directory)
        path = directory / files.CHECKPOINT
        if path.exists():
            latest = path.read_bytes().decode()  # a \r is not taken for a \n
        found = [(number, path, path.stat().st_size) for number, path in files.segments(directory)]
        walk.ring = _ring(directory)
    except UnicodeDecodeError as error:
        raise walk.stop("not a signed note", segment=files.CHECKPOINT) from error
    except OSError as error:
        name = str(error.filename or directory)
        raise walk.stop(str(error.strerror), Status.INCOMPLETE, segment=name) from error
    if not found and latest is None:
        raise walk.stop("no journal here", Status.INCOMPLETE, segment=str(directory))
    # What journald heard is compared record by record, in order.
    jobs = 1 if walk.copied is not None else pace.jobs or stretch.jobs_for(found)
    with stretch.walked_ahead(found, jobs) as known:
        torn = _segments_of(walk, found, known, lambda: _take_claims(walk, latest, claims), pace)
    if walk.claims:
        walk.check_signature(walk.claims[-1])
    signed = [*([files.CHECKPOINT] if latest is not None else []), *map(_name, claims.checkpoints)]
    if walk.claims or (signed and not report.records):
        size = walk.claims[-1].checkpoint.size if walk.claims else 0
        source = walk.claims[-1].source if walk.claims else signed[0]
        raise walk.stop(
            f"the chain ends after {report.records} records, but {source} was signed for "
            f"{size or 'more'}: the tail was cut off",
            line=walk.line + bool(torn),
            seq=report.records,
        )
    if walk.copied is not None and walk.copied.ahead is not None and not live:
        raise walk.stop(
            f"the chain ends after {report.records} records, but journald got record "
            f"{walk.copied.ahead}: the tail was cut off",
            seq=report.records,
        )
    if torn and not live:
        raise walk.stop(
            f"a torn tail of {torn} bytes, as a crash leaves it; the next start sets it aside",
            Status.INCOMPLETE,
            line=walk.line + 1,
            seq=report.records,
        )
    if not report.records:
        raise walk.stop("no record yet, as a crash at its beginning leaves it", Status.INCOMPLETE)
    walk.finish()
    if latest is None:
        if not live:
            raise walk.stop("the file is missing", Status.INCOMPLETE, segment=files.CHECKPOINT)
        report.notes.append("the writer has just begun and signed nothing yet")
    if live:
        report.notes.append("a writer is at work: what it wrote since is not in this verdict")


def _name(checkpoint: tuple[str, str]) -> str:
    return checkpoint[0]


def _segments_of(
    walk: Walk,
    found: Sequence[stretch.Segment],
    known: stretch.Known,
    begun: Callable[[], None],
    pace: Pace,
) -> int:
    """Walk the segments; return the bytes of a torn last line."""
    report = walk.report
    torn = walked = 0
    total = sum(size for _, _, size in found)
    for position, segment in enumerate(found):
        number, path, size = segment
        walk.segment, walk.line = path.name, 0
        if number != found[0][0] + position:
            missing = files.segment_name(found[0][0] + position)
            raise walk.stop("the segment is missing", segment=missing, seq=report.records)
        if torn:
            raise walk.stop("the segment before ends in a torn line", seq=report.records)

        def opened(segment: stretch.Segment = segment) -> bool:
            if not report.segments:
                begun()
            return stretch.take_over(walk, known(segment))

        def told(left: int, done: int = walked + size) -> None:
            if pace.progress is not None:
                pace.progress(done - left, total)

        try:
            torn = stretch.walk_segment(walk, segment, opened=opened, told=told)
        except OSError as error:
            raise walk.stop(str(error.strerror), Status.INCOMPLETE, line=0) from error
        report.segments = position + 1
        walked += size
        told(0)
    return torn


def _take_claims(walk: Walk, latest: str | None, claims: Claims) -> None:
    """Now that the genesis has named the key, open the notes that were signed with it."""
    report = walk.report
    if walk.given:
        report.anchors.append(
            Anchor(
                PUBLIC_KEY,
                "a rewrite of the present epoch by whoever holds its key, and an older copy",
            )
        )
    if latest is not None:
        walk.claim(files.CHECKPOINT, latest)
    cosigned = False
    for name, note in claims.checkpoints:
        size = walk.claim(name, note)
        if size is None:
            continue
        words = _cosigners_of(walk, name, note, claims.cosigners)
        cosigned = cosigned or bool(words)
        after = f"records after the first {size}"
        if words:
            after += ", and a witness that whoever holds this journal's key runs himself"
        report.anchors.append(Anchor(f"checkpoint {name}{words}", after))
    if claims.cosigners and not cosigned:
        names = ", ".join(key.name for key in claims.cosigners)
        raise walk.stop(
            f"no checkpoint that was given is cosigned by {names}",
            Status.INCOMPLETE,
            segment="witness",
            line=0,
        )
    walk.settle()


def _cosigners_of(walk: Walk, name: str, note: str, known: Sequence[WitnessKey]) -> str:
    """Return in words who of the witnesses cosigned a checkpoint, and when."""
    words: list[str] = []
    for key in known:
        try:
            at = cosigned_at(note, key)
        except NoteError as error:
            raise walk.stop(error.message, segment=name, line=0) from error
        if at is not None:
            when = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(at, 2**40)))
            words.append(f", cosigned by {key.name} at {when}")
    return "".join(words)


def read_checkpoint(path: Path) -> tuple[str, str]:
    """Return a checkpoint file for :func:`verify`.

    Raises:
        JournalError: it cannot be read.
    """
    try:
        return str(path), path.read_bytes().decode()
    except OSError as error:
        raise JournalError(
            f"{path}: {error.strerror}", hint="a checkpoint is a copy of STATE/journal/checkpoint"
        ) from error
    except UnicodeDecodeError as error:
        raise JournalError(
            f"{path}: not a signed note", hint="a checkpoint is a copy of STATE/journal/checkpoint"
        ) from error


def origin_of(directory: Path) -> str:
    """Return the name under which a chain signs its checkpoints, as its first record has it.

    Raises:
        JournalError: there is no journal, or its first line is no record.
    """
    first = next(reader.lines(directory), None)
    if first is None:
        raise JournalError(f"{directory}: no record here", hint="give --state DIR")
    try:
        return f"safeclaw/{decode(first[2]).chain}"
    except RecordError as error:
        raise JournalError(
            f"{first[0]}: {error.message}", hint="run: safeclaw audit verify"
        ) from error
