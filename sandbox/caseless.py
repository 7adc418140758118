"""Where names are without regard to case: a rule on a name holds there for one spelling of many.

Rules are compared letter by letter, and the kernel gives a name as it was asked for: where
``secrets`` is denied, ``SECRETS`` is another name, of the same file on vfat.  So nothing below such
a place is allowed.  What a file system's type does not tell is asked of it: a name that it lists is
looked up with its letters turned.  What gives no answer is taken for caseless.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import re
import select
import signal
import stat
import struct
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping

import msgspec

from safeclaw.sandbox.gate import Gate, end_for_defect

OWN_MOUNTS = "/proc/self/mountinfo"
#: Types that tell names apart, but in directories that have the casefold attribute.
_TELLS_APART = frozenset((
    "autofs", "bcachefs", "binder", "binfmt_misc", "bpf", "btrfs", "cgroup", "cgroup2",
    "configfs", "cpuset", "debugfs", "devpts", "devtmpfs", "erofs", "ext2", "ext3", "ext4",
    "f2fs", "fusectl", "hugetlbfs", "mqueue", "nilfs2", "nsfs", "overlay", "proc", "pstore",
    "ramfs", "rootfs", "rpc_pipefs", "securityfs", "selinuxfs", "squashfs", "sysfs", "tmpfs",
    "tracefs", "ubifs", "udf",
))  # fmt: skip
#: Types that never do; all others depend on how they were made, mounted or served.
_NEVER_DOES = frozenset(("efivarfs", "exfat", "msdos", "vfat"))
#: How long file systems have to answer at the start, in seconds, all together; and the workspace's,
#: without whose answer nothing starts: over a slow network, or on a machine that is busy.
_PATIENCE, _PATIENCE_FOR_WORKSPACE = 1.0, 10.0
_ANSWER = struct.Struct("=I?")
_OCTAL = re.compile(rb"\\([0-7]{3})")
#: linux/fs.h; the kernel writes an int, whatever the request's number says.
_FS_IOC_GETFLAGS, _FS_CASEFOLD_FL = 0x80086601, 0x40000000
#: xfs_fs.h: struct xfs_fsop_geom_v1 as far as its flags, and what mkfs.xfs -n version=ci sets.
_XFS_IOC_FSGEOMETRY_V1, _XFS_FSOP_GEOM_FLAGS_DIRV2CI = 0x80705864, 1 << 12
_XFS_GEOMETRY, _XFS_GEOMETRY_SIZE = struct.Struct("=92xI"), 112

_Origin = tuple[bytes, bytes, bytes]


class Mount(msgspec.Struct, frozen=True):
    """A line of proc_pid_mountinfo(5), as far as it matters here.

    ``origin`` is what remains the same of a file system wherever it is mounted: device number, type
    and source.
    """

    point: str
    kind: str
    origin: _Origin


def mounts(text: bytes) -> Iterator[Mount]:
    """Read proc_pid_mountinfo(5)."""
    for line in text.split(b"\n")[:-1]:  # a carriage return may stand in a name
        before, _, after = line.partition(b" - ")
        _, _, device, _, point = before.split(b" ")[:5]
        kind, source = after.split(b" ")[:2]
        point = _OCTAL.sub(lambda found: bytes((int(found[1], 8),)), point)
        yield Mount(os.fsdecode(point), kind.decode(errors="replace"), (device, kind, source))


class Look:
    """What one session has found out about file systems.  May be used by any thread.

    INVARIANT: only what is mounted when this is made is asked.  A file system that comes later,
    and whose type does not tell, is taken for caseless: nobody waits for it.
    """

    def __init__(self, workspace: str) -> None:
        found = list(mounts(_read(OWN_MOUNTS)))
        apart: set[_Origin] = set()
        asked: dict[_Origin, list[str]] = {}
        for mount in found:
            if mount.kind == "xfs":  # on a disk of this machine: nobody else to wait for
                if _xfs_tells_apart(mount.point):
                    apart.add(mount.origin)
            elif mount.kind not in _TELLS_APART and mount.kind not in _NEVER_DOES:
                asked.setdefault(mount.origin, []).append(mount.point)
        # of several mounts at one point the last is seen
        around = [mount for mount in reversed(found) if within(workspace, mount.point)]
        innermost = max(around, key=lambda mount: len(mount.point)).origin if around else None
        if innermost in asked:
            asked[innermost].append(workspace)
        apart.update(ask(asked, innermost) if asked else ())
        self._apart = frozenset(apart)

    def places(self, mountinfo: bytes | None = None) -> tuple[str, ...]:
        """Return the mount points below which names are, or may be, without regard to case."""
        text = _read(OWN_MOUNTS) if mountinfo is None else mountinfo
        return tuple(
            dict.fromkeys(
                mount.point
                for mount in mounts(text)
                if mount.kind not in _TELLS_APART and mount.origin not in self._apart
            )
        )

    @staticmethod
    def others() -> tuple[str, ...]:
        """Return the mount points at which somebody else is told of each name that is looked up.

        An automounter, another machine, a program (FUSE).
        """
        kernels = _TELLS_APART.union(_NEVER_DOES, ("xfs",)).difference(("autofs",))
        return tuple(
            mount.point for mount in mounts(_read(OWN_MOUNTS)) if mount.kind not in kernels
        )

    def watch(self, pid: int, known: tuple[str, ...], gate: Gate, kill: Callable[[], None]) -> None:
        """Have the gate shut what comes up in the view of process ``pid``, in a thread."""
        source = open(f"/proc/{pid}/mountinfo", "rb", buffering=0)  # noqa: SIM115 - the thread's

        def wait() -> None:
            try:
                with source:
                    self._wait(source, known, gate)
            except Exception as problem:
                # SAFETY: nobody sees any more what comes up.
                end_for_defect(gate, "mounts", problem, kill)

        threading.Thread(target=wait, name="mounts", daemon=True).start()

    def _wait(self, source: io.FileIO, known: tuple[str, ...], gate: Gate) -> None:
        shut = set(known)
        changed = select.poll()
        changed.register(source, select.POLLERR | select.POLLPRI)
        while True:
            source.seek(0)
            more = [place for place in self.places(source.readall()) if place not in shut]
            if more:
                gate.shut(tuple(more))
                shut.update(more)
            changed.poll()


def folding(paths: Iterable[str], apart_from: tuple[str, ...]) -> tuple[str, ...]:
    """Return the directories on the way of ``paths`` that have the casefold attribute (chattr(1)).

    Nothing is looked at below ``apart_from``, where nothing is allowed anyway.
    """
    seen: dict[str, bool] = {}
    for path in paths:
        for directory in _way(path):
            if directory not in seen:
                beyond = any(within(directory, place) for place in apart_from)
                seen[directory] = not beyond and _folds(directory)
            if seen[directory]:
                break
    return tuple(directory for directory, folds in seen.items() if folds)


def within(path: str, place: str) -> bool:
    """Whether a path is ``place`` or lies in it."""
    return place == "/" or path == place or path.startswith(place + "/")


def _way(path: str) -> Iterator[str]:
    """Yield the directories on the way of an absolute path, and itself, from the root."""
    yield "/"
    for found in re.finditer("/(?!$)", path.rstrip("/")[1:] + "/"):
        yield path[: found.start() + 1]
    if path != "/":
        yield path.rstrip("/")


def _read(path: str) -> bytes:
    with open(path, "rb") as source:
        return source.read()


def _folds(directory: str) -> bool:
    """Whether a directory has the casefold attribute; what cannot be asked has it not."""
    try:
        fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        (flags,) = struct.unpack_from("=I", fcntl.ioctl(fd, _FS_IOC_GETFLAGS, bytes(8)))
    except OSError:
        return False
    finally:
        os.close(fd)
    return bool(flags & _FS_CASEFOLD_FL)


def ask(places: Mapping[_Origin, list[str]], needed: _Origin | None) -> set[_Origin]:
    """Return the file systems, each with some directories, that tell names apart.

    ``needed`` has more time to answer than the others.

    A child asks, with a thread for each, because a file system that does not answer holds who asks
    for as long as it likes, even against SIGKILL.

    SAFETY: it closes everything that it has: held for ever, it must not keep a socket open.
    """
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.dup2(there, 0)
            os.closerange(1, 1 + max(int(name) for name in os.listdir("/proc/self/fd")))
            threads = [
                threading.Thread(target=_answer, args=(at, group), daemon=True)
                for at, group in enumerate(places.values())
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        finally:
            os._exit(0)
    os.close(there)
    origins = tuple(places)
    answers: dict[_Origin, bool] = {}
    began = time.monotonic()
    ready = select.poll()
    ready.register(here, select.POLLIN)
    while True:
        waits = needed in places and needed not in answers
        until = began + (_PATIENCE_FOR_WORKSPACE if waits else _PATIENCE)
        if not ready.poll(max(0.0, until - time.monotonic()) * 1000):
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, os.WNOHANG)
            break
        answer = os.read(here, _ANSWER.size)  # written at once, hence read at once (pipe(7))
        if not answer:
            os.waitpid(child, 0)  # no thread of it is held: each has closed what it had
            break
        at, apart = _ANSWER.unpack(answer)
        answers[origins[at]] = apart
    os.close(here)
    return {origin for origin, apart in answers.items() if apart}


def _answer(at: int, places: list[str]) -> None:
    """Write whether the file system with number ``at`` tells names apart wherever it is asked."""
    answers: set[bool | None] = set()
    for place in places:
        try:
            if stat.S_ISDIR(os.stat(place).st_mode):
                answers.add(tells_apart(place))
        except OSError:
            answers.add(None)
    # a mount of one file has its name in another file system
    apart = not answers or (True in answers and False not in answers)
    os.write(0, _ANSWER.pack(at, apart))


def tells_apart(directory: str) -> bool | None:
    """Whether a directory tells the names that it lists from others by case; None: not known.

    Inode numbers say nothing: many a FUSE file system has another for each spelling.
    """
    above = os.fsencode(directory)
    with contextlib.suppress(OSError):
        names = set(os.listdir(above))
        for name in names:
            turned = name.swapcase()  # of bytes: ASCII letters only
            if turned == name or turned in names:
                continue
            try:
                os.lstat(os.path.join(above, turned))
            except FileNotFoundError:
                # if it has not gone meanwhile by its own name as well
                if os.path.lexists(os.path.join(above, name)):
                    return True
            else:
                return False
    return None


def _xfs_tells_apart(place: str) -> bool:
    """Whether an XFS was made to tell names apart (mkfs.xfs(8), -n version=ci)."""
    try:
        fd = os.open(place, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        found = fcntl.ioctl(fd, _XFS_IOC_FSGEOMETRY_V1, bytes(_XFS_GEOMETRY_SIZE))
    except OSError:
        return False
    finally:
        os.close(fd)
    return not _XFS_GEOMETRY.unpack_from(found)[0] & _XFS_FSOP_GEOM_FLAGS_DIRV2CI
