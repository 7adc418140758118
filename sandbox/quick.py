"""The short way of the commonest call: opening for reading what was opened before.

It serves openat(2) with plain flags, by a caller that is known, of a name that
was opened and allowed before.  Everything else, and every error, is left to the
mediator's handlers, which also teach this way its names.  What it promises is
what they promise: the path is read once, the record is handed over before the
descriptor, and what is handed over is what was judged.
"""

from __future__ import annotations

import ctypes
import fcntl
import os
import struct
import time
from collections.abc import Callable

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import Caller
from safeclaw.sandbox.resolve import RESOLVE, RESOLVE_LITERALLY

#: struct seccomp_notif, as far as openat needs it: id, pid, nr, args[0..2].
_CALL = struct.Struct("=QI4xi12xQQQ24x")
#: Paths that are longer take the long way.
PATH_MAX = 256
_PLAIN = os.O_RDONLY
_FREE = (os.O_CLOEXEC, linux.O_LARGEFILE, os.O_DIRECTORY, os.O_NOCTTY, os.O_NOFOLLOW)
_CWD = linux.AT_FDCWD & 0xFFFFFFFF


def _flag_sets() -> list[int]:
    sets = [_PLAIN]
    for flag in _FREE:
        sets += [flags | flag for flags in sets]
    return sets


class _How:
    """The open_how of one set of flags: to look where a name leads, and to open a literal one."""

    __slots__ = ("cloexec", "literal", "place", "values")

    def __init__(self, flags: int) -> None:
        # SAFETY: O_NONBLOCK, so that a FIFO put in the file's place cannot hold the loop.
        given = flags | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY
        look = linux.O_PATH | os.O_CLOEXEC | flags & os.O_NOFOLLOW
        self.values = (
            linux.OpenHow(given, 0, RESOLVE_LITERALLY),
            linux.OpenHow(look, 0, RESOLVE),
        )
        self.literal, self.place = (
            ctypes.c_void_p(ctypes.addressof(value)) for value in self.values
        )
        self.cloexec = flags & os.O_CLOEXEC


def reader(
    listener: int,
    root: int,
    descriptors: int,
    openat: int,
    callers: dict[int, Caller],
    refuse: Callable[[int, Exception], None],
) -> Callable[[bytes], bool]:
    """Return what answers a notification (struct seccomp_notif); False: it is not for here.

    For one thread alone, and without a descriptor of its own: there may be none left by then.
    ``descriptors`` is /proc/self/fd.  ``refuse`` answers a call, by its id, that could not be
    finished.
    """
    # A closure, and everything bound: each name that need not be looked up counts here.
    hows = {flags: _How(flags) for flags in _flag_sets()}
    give = bytearray(linux.NOTIF_ADDFD.size)
    unpack, pack_into = _CALL.unpack, linux.NOTIF_ADDFD.pack_into
    ioctl, pread, close, readlink = fcntl.ioctl, os.pread, os.close, os.readlink
    set_blocking, clock, openat2 = os.set_blocking, time.monotonic_ns, linux.raw_openat2
    lseek, here = os.lseek, os.SEEK_CUR
    addfd, send = linux.SECCOMP_IOCTL_NOTIF_ADDFD, linux.SECCOMP_ADDFD_FLAG_SEND

    def answer(notification: bytes) -> bool:
        ident, pid, number, directory, address, flags = unpack(notification)
        if number != openat:
            return False
        begin = clock()
        caller = callers.get(pid)
        how = hows.get(flags)
        # SAFETY: the caller waits in its call, so its pid is the task that is remembered
        # for as long as the memory of it is trusted; after an exec it is not remembered.
        if caller is None or how is None or begin >= caller.trusted_until:
            return False
        try:
            path = pread(caller.memory, PATH_MAX, address)
            path = path[: path.index(0)]
            if path[0] != 47:
                path = _base(caller, directory) + path
            known = caller.opened[path]
        except (OSError, OverflowError, ValueError, LookupError):
            return False
        # SAFETY: what was judged is the real path, and it alone is opened: even to open another,
        # and give it to nobody, could have an effect.
        if not known.literal:
            place: int = openat2(437, root, path, how.place, 24)
            if place < 0:
                return False
            try:
                if readlink(b"%d" % place, dir_fd=descriptors) != known.real:
                    return False
            finally:
                close(place)
        # A literal name has no other real path than itself, since no component of it is a link
        # when the kernel walks it.
        fd: int = openat2(437, root, known.real, how.literal, 24)
        if fd < 0:
            return False
        try:
            try:
                lseek(fd, 0, here)
            except OSError:
                # ESPIPE: a FIFO is there now, whose open has to wait for its other end
                caller.opened.pop(path, None)
                return False
            if not known.handover(pid, begin):
                return False
            set_blocking(fd, True)
            pack_into(give, 0, ident, send, fd, 0, how.cloexec)
            ioctl(listener, addfd, give)
        except Exception as problem:
            refuse(ident, problem)
        finally:
            close(fd)
        return True

    return answer


def _base(caller: Caller, directory: int) -> bytes:
    """Return the directory a relative path starts from, now, with a slash; ValueError."""
    # the kernel takes an int
    directory &= 0xFFFFFFFF
    where = "cwd" if directory == _CWD else f"fd/{directory}"
    base = os.readlink(f"/proc/{caller.pid}/{where}".encode())
    if not base.startswith(b"/") or base.endswith(b" (deleted)"):
        raise ValueError
    return base if base == b"/" else base + b"/"
