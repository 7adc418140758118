"""What is said about a file, and its length: set by the supervisor on the pinned file."""

from __future__ import annotations

import errno
import os
import stat

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import read_exact, read_string
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import SET_ID, judge, path_argument, pin, require_flags
from safeclaw.sandbox.resolve import Pinned, error

_XATTR_MAX = 65536
_CALLS = (
    *("chmod", "fchmodat", "fchmodat2", "fchmod", "chown", "lchown", "fchownat", "fchown"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr"),
)


def _truncate(note: Notification) -> int:
    with pin(note, "file.write.modify", linux.AT_FDCWD, path_argument(note, 0)) as pinned:
        judge(note, "file.write.modify", pinned.path)
        length = note.args[1]
        os.truncate(f"/proc/self/fd/{pinned.fd}", length - (1 << 64) if length >> 63 else length)
    return 0


def _subject(note: Notification) -> tuple[Pinned, int]:
    """Pin what a metadata call is about; return it and the index of its first value."""
    name = note.name
    if name in ("fchmod", "fchown", "fsetxattr", "fremovexattr"):
        return note.mediator.resolver.pin_descriptor(note.caller, note.int_arg(0)), 1
    if not name.endswith(("at", "at2")):
        follow = not name.startswith("l")
        return pin(
            note, "file.write.metadata", linux.AT_FDCWD, path_argument(note, 0), follow=follow
        ), 1
    flag = {"fchownat": 4, "fchmodat2": 3, "utimensat": 3}.get(name)
    flags = note.int_arg(flag) if flag is not None else 0
    require_flags(flags, linux.AT_EMPTY_PATH | linux.AT_SYMLINK_NOFOLLOW)
    dirfd = note.int_arg(0)
    if name == "utimensat" and not note.args[1] and dirfd != linux.AT_FDCWD:
        return note.mediator.resolver.pin_descriptor(note.caller, dirfd), 2  # futimens(3)
    path = path_argument(note, 1)
    if not path and flags & linux.AT_EMPTY_PATH:
        if dirfd == linux.AT_FDCWD:
            return pin(note, "file.write.metadata", dirfd, "."), 2
        return note.mediator.resolver.pin_descriptor(note.caller, dirfd), 2
    follow = not flags & linux.AT_SYMLINK_NOFOLLOW
    return pin(note, "file.write.metadata", dirfd, path, follow=follow), 2


def _id(value: int) -> int:
    """Return a uid_t or gid_t as os.chown takes it: unsigned, and -1 for "leave it"."""
    value &= 0xFFFFFFFF
    return -1 if value == 0xFFFFFFFF else value


def _metadata(note: Notification) -> int:
    pinned, rest = _subject(note)
    with pinned:
        judge(note, "file.write.metadata", pinned.path)
        name, handle = note.name, f"/proc/self/fd/{pinned.fd}"
        symlink = stat.S_ISLNK(os.fstat(pinned.fd).st_mode)
        if "chmod" in name:
            if symlink:
                raise error(errno.EOPNOTSUPP)
            mode = note.int_arg(rest) & 0o7777
            if mode & SET_ID and not stat.S_ISDIR(os.fstat(pinned.fd).st_mode):
                raise error(errno.EPERM)
            os.chmod(handle, mode)
        elif "chown" in name:
            os.chown(handle, _id(note.args[rest]), _id(note.args[rest + 1]))
        elif name == "utimensat":
            times = read_exact(note.pid, note.args[rest], 32) if note.args[rest] else None
            linux.utimensat(linux.AT_FDCWD, handle.encode(), times, 0)
        elif "removexattr" in name:
            os.removexattr(handle, read_string(note.pid, note.args[1], 256))
        else:
            size = note.args[3]
            if size > _XATTR_MAX:
                raise error(errno.E2BIG)
            value = read_exact(note.pid, note.args[2], size)
            os.setxattr(handle, read_string(note.pid, note.args[1], 256), value, note.int_arg(4))
    return 0


def handlers() -> dict[str, Handler]:
    """Return the handlers by the names of their calls."""
    return {"truncate": _truncate, **dict.fromkeys(_CALLS, _metadata)}
