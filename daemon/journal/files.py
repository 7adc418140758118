"""The journal's files: names, safe opening, atomic replacement, signing keys.

``<state>/journal/``: ``lock`` (flock of the one writer), ``segment-NNNNNN.jsonl``,
``checkpoint`` (the latest signed note), ``frontier`` (a cache that spares the
writer a full scan; worthless to a verifier), ``torn-*`` (tails set aside),
``fault`` (room for what a failing disk leaves no other place to say).
``<state>/keys/``: ``journal.key`` (the Ed25519 seed), ``journal.pub``.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import stat
import time
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal.note import PublicKey, SigningKey
from safeclaw.errors import JournalError

LOCK: Final = "lock"
CHECKPOINT: Final = "checkpoint"
FRONTIER: Final = "frontier"
FAULT: Final = "fault"
PRIVATE_KEY: Final = "journal.key"
PUBLIC_KEY: Final = "journal.pub"
#: How often, and how far apart in seconds, a writer tries to take the lock.
_LOOKS: Final = 20
_MOMENT: Final = 0.005
_SEGMENT = re.compile(r"segment-([0-9]{6,12})\.jsonl")


def segment_name(number: int) -> str:
    """Return the file name of a segment, counted from 1."""
    return f"segment-{number:06}.jsonl"


def segment_number(name: str) -> int:
    """Return the number in a segment's file name; 0 when it is none."""
    match = _SEGMENT.fullmatch(name)
    number = int(match[1]) if match else 0
    return number if segment_name(number) == name else 0


def segments(directory: Path) -> list[tuple[int, Path]]:
    """Return the segments in order, each with its number."""
    found: list[tuple[int, Path]] = []
    for name in os.listdir(directory):
        match = _SEGMENT.fullmatch(name)
        if match and segment_name(int(match[1])) == name:
            found.append((int(match[1]), directory / name))
    return sorted(found)


def make_directory(path: Path, mode: int = 0o700) -> None:
    """Make a directory of the writer's own, or accept one that is safe.

    ``mode`` may let a group read; whether it does, the umask decides.

    Raises:
        JournalError: it cannot be made, or others may write to it.
    """
    try:
        path.mkdir(mode=mode, parents=True, exist_ok=True)
        status = path.lstat()
    except OSError as error:
        raise JournalError(f"{path}: {error.strerror}", hint="give --state DIR") from error
    if not stat.S_ISDIR(status.st_mode):
        raise JournalError(f"{path}: not a directory", hint="give --state DIR")
    if status.st_uid != os.geteuid() or status.st_mode & 0o022:
        raise JournalError(
            f"{path}: owned by another user or writable by others",
            hint="the journal's directory must belong to its writer alone",
        )


def take_lock(directory: Path) -> int:
    """Return a descriptor that holds the writer's lock.

    Raises:
        JournalError: another writer has it.
    """
    path = directory / LOCK
    fd = -1
    try:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        _hold(fd)
    except BlockingIOError as error:
        os.close(fd)
        raise JournalError(
            f"{directory}: another process is writing this journal",
            hint="one broker owns a state directory; give another one --state DIR of its own",
        ) from error
    except OSError as error:
        if fd >= 0:
            os.close(fd)
        raise JournalError.of(error, path) from error
    return fd


def _hold(lock: int) -> None:
    """Take the writer's lock.  BlockingIOError: a writer has it.

    Who only looks (:func:`is_locked`) has it for a moment, and is no writer.
    """
    for _ in range(_LOOKS):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(_MOMENT)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def is_locked(directory: Path) -> bool:
    """Whether a writer is at work here right now."""
    try:
        fd = os.open(directory / LOCK, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except PermissionError:
        return _listed(directory / LOCK)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _listed(lock: Path) -> bool:
    """Whether the kernel lists a flock on a file (proc_locks(5)).

    SAFETY: the lock is for its writer alone to open: who may only read the journal must not
    be able to hold it, and so keep the writer out.
    """
    try:
        status = lock.stat()
        device = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
        held = Path("/proc/locks").read_text()
    except OSError:
        return False
    return any(" FLOCK " in line and device in line.split() for line in held.splitlines())


def open_segment(path: Path, *, create: bool) -> int:
    """Open a segment for appending; a link of any kind in its place is refused."""
    flags = os.O_RDWR | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
    if create:
        flags |= os.O_CREAT | os.O_EXCL
    try:
        fd = os.open(path, flags, 0o640)
    except OSError as error:
        raise JournalError.of(error, path) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode) or status.st_nlink != 1:
        os.close(fd)
        raise JournalError(
            f"{path}: not a plain file of its own",
            hint="something else was put there; run: safeclaw audit verify",
        )
    return fd


def sync(fd: int) -> None:
    """Make what was appended to a file durable.  OSError when it is not.

    Linux 6.18's ext4 can answer an fdatasync with 0 though the commit that it waited for was
    dropped: the file system was shut down, or met an error, just then
    (docs/adr/journal-look-after-the-sync.md).
    """
    os.fdatasync(fd)
    try:
        # Changes nothing, but begins a transaction: that fails once one was dropped.
        os.posix_fallocate(fd, 0, 1)
    except OSError as error:
        # The file system has no fallocate.  INVARIANT: the descriptor is O_APPEND, for which
        # glibc says EBADF instead of writing zeros in its place.
        if error.errno not in (errno.EOPNOTSUPP, errno.EBADF, errno.ENOSYS, errno.EINVAL):
            raise


def sync_directory(directory: Path) -> None:
    """Make renames and new names in a directory durable."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def replace(path: Path, content: bytes, *, mode: int = 0o640, sync: bool = True) -> None:
    """Put ``content`` in the file's place at once: a reader sees old or new."""
    temporary = path.with_name(path.name + ".new")
    fd = os.open(
        temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NOFOLLOW, mode
    )
    try:
        if os.write(fd, content) != len(content):
            raise OSError(28, "short write", str(temporary))
        if sync:
            os.fdatasync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)


def load_key(keys: Path, file: str = PRIVATE_KEY) -> SigningKey:
    """Return the journal's signing key.

    Raises:
        JournalError: it is missing, unreadable, or not a key.
    """
    path = keys / file
    try:
        name, seed = path.read_text("ascii").split()
        return SigningKey(name, bytes.fromhex(seed))
    except OSError as error:
        raise JournalError(
            f"{path}: {error.strerror}",
            hint="without its key this journal cannot go on; keep it and start another state",
        ) from error
    except ValueError as error:
        raise JournalError(
            f"{path}: not a signing key",
            hint="restore it from a backup; else keep this journal and start another state",
        ) from error


def new_key(keys: Path, name: str) -> SigningKey:
    """Make, store and return a signing key."""
    make_directory(keys)
    key = SigningKey(name, os.urandom(32))
    try:
        replace(keys / PRIVATE_KEY, f"{name} {key.seed.hex()}\n".encode(), mode=0o600)
        replace(keys / PUBLIC_KEY, f"{key.public.text()}\n".encode(), mode=0o644)
        sync_directory(keys)
    except OSError as error:
        raise JournalError.of(error, keys) from error
    return key


def read_public_key(path: Path) -> PublicKey:
    """Return the public key in a file.

    Raises:
        JournalError: unreadable, or not a key.
    """
    try:
        return PublicKey.parse(path.read_text("utf-8"))
    except OSError as error:
        raise JournalError.of(error, path) from error
    except UnicodeDecodeError as error:
        raise JournalError(
            f"{path}: not a public key", hint="safeclaw audit keys export writes one"
        ) from error


#: Larger than any reason; written once, so that a full disk still has room for one.
_FAULT_ROOM: Final = 1024


def prepare_fault_note(directory: Path) -> None:
    """Make room for :func:`leave_fault_note`.  OSError."""
    path = directory / FAULT
    if not path.exists():
        replace(path, b"\n" * _FAULT_ROOM, mode=0o600, sync=False)


def leave_fault_note(directory: Path, ts: str, reason: str) -> None:
    """Leave a note of a fault for the next start, as far as the disk still takes it."""
    # Short of a whole note: the time first, then as much of the reason as fits.
    note = f"{ts} {reason}".encode("utf-8", "backslashreplace")[: _FAULT_ROOM - 1]
    with contextlib.suppress(OSError):
        fd = os.open(directory / FAULT, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, note.replace(b"\n", b" ") + b"\n", 0)
            os.fsync(fd)
        finally:
            os.close(fd)


def take_fault_note(directory: Path) -> str:
    """Return what the last fault left; empty when there was none."""
    try:
        content = (directory / FAULT).read_bytes()[:_FAULT_ROOM]
    except OSError:
        return ""
    return content.partition(b"\n")[0].decode("utf-8", "replace")


def clear_fault_note(directory: Path) -> None:
    """Forget the note: what it said is in the chain.  OSError."""
    replace(directory / FAULT, b"\n" * _FAULT_ROOM, mode=0o600)
