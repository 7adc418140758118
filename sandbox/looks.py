"""Calls that look at a file without opening it, and tell more of it than stat(2): judged as reads.

A watch (inotify(7)) tells the names in a directory, as listing it does; an extended
attribute holds what somebody wrote.  Both are carried out on the pinned file.
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat

from safeclaw.policies.model import Attempt, FileTarget
from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import read_string
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import path_argument, pin
from safeclaw.sandbox.resolve import Pinned, error, held

_IN_DONT_FOLLOW = 0x02000000
_NAME_MAX = 256
#: XATTR_LIST_MAX and XATTR_SIZE_MAX (linux/limits.h).
_SIZE_MAX = 65536
#: What stat(2) could as well tell: who may do what with the file.  ``ls -l`` asks for it.
_OF_ACCESS = (
    *(b"system.posix_acl_access", b"system.posix_acl_default"),
    *(b"security.selinux", b"security.capability", b"security.SMACK64"),
)
_libc = ctypes.CDLL(None, use_errno=True)


def _watch(note: Notification) -> int:
    """inotify_add_watch(2), on a duplicate of the caller's descriptor."""
    number, mask = note.int_arg(0), note.args[2] & 0xFFFFFFFF
    path = path_argument(note, 1)
    watches = note.caller.duplicate(number)
    try:
        follow = not mask & _IN_DONT_FOLLOW
        with pin(note, "file.read", linux.AT_FDCWD, path, follow=follow) as pinned:
            note.judge(Attempt("file.read", FileTarget(pinned.path)))
            # the link of /proc is followed to what was pinned, be that a link, and no further
            handle = os.fsencode(f"/proc/self/fd/{pinned.fd}")
            found = _libc.inotify_add_watch(
                watches, handle, ctypes.c_uint32(mask & ~_IN_DONT_FOLLOW)
            )
            if found < 0:
                raise error(ctypes.get_errno())
            return int(found)
    finally:
        os.close(watches)


def _get(note: Notification) -> int:
    """getxattr(2), lgetxattr(2), fgetxattr(2)."""
    name = read_string(note.pid, note.args[1], _NAME_MAX)
    with _pinned(note) as pinned:
        if name not in _OF_ACCESS:
            _judge(note, pinned)
        return _answer(note, 2, os.getxattr(_handle(pinned), name))


def _list(note: Notification) -> int:
    """listxattr(2), llistxattr(2), flistxattr(2)."""
    with _pinned(note) as pinned:
        _judge(note, pinned)
        names = (os.fsencode(name) + b"\0" for name in os.listxattr(_handle(pinned)))
        return _answer(note, 1, b"".join(names))


def _judge(note: Notification, pinned: Pinned) -> None:
    """Have it judged as a read, unless it is open for reading already."""
    if note.name.startswith("f"):
        has = held(note.caller, note.int_arg(0), pinned.fd)
        if has & linux.O_PATH:
            raise error(errno.EBADF)
        if has & os.O_ACCMODE in (os.O_RDONLY, os.O_RDWR):
            return
    note.judge(Attempt("file.read", FileTarget(pinned.path)))


def _pinned(note: Notification) -> Pinned:
    if note.name.startswith("f"):
        return note.mediator.resolver.pin_descriptor(note.caller, note.int_arg(0))
    # not recorded where it is not there: this is asked of every name that is only looked at
    follow = note.name in ("getxattr", "listxattr")
    return note.mediator.resolver.pin(
        note.caller, linux.AT_FDCWD, path_argument(note, 0), follow=follow
    )


def _handle(pinned: Pinned) -> str:
    # the kernel stores no user attributes on a link; of others it has none to tell here
    if stat.S_ISLNK(os.fstat(pinned.fd).st_mode):
        raise error(errno.ENODATA)
    return f"/proc/self/fd/{pinned.fd}"


def _answer(note: Notification, index: int, value: bytes) -> int:
    """Put the value where the caller wants it, unless it asks for the size only."""
    size = min(note.args[index + 1], _SIZE_MAX)
    if not size:
        return len(value)
    if len(value) > size:
        raise error(errno.ERANGE)
    if value:
        try:
            # SAFETY: the caller waits, and is who asked; its memory is its own affair
            note.check_alive()
            linux.write_memory(note.pid, note.args[index], value)
        except OSError as problem:
            raise error(errno.EFAULT) from problem
    return len(value)


def handlers() -> dict[str, Handler]:
    """Return the handlers by the names of their calls."""
    return {
        "inotify_add_watch": _watch,
        **dict.fromkeys(("getxattr", "lgetxattr", "fgetxattr"), _get),
        **dict.fromkeys(("listxattr", "llistxattr", "flistxattr"), _list),
    }
