"""Names in directories: made, linked, renamed and removed by the supervisor on pinned parents."""

from __future__ import annotations

import errno
import os
import stat

from safeclaw.sandbox import linux
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import (
    SET_ID,
    judge,
    parent,
    path_argument,
    pin,
    require_flags,
    require_read,
)
from safeclaw.sandbox.resolve import Nameless, at, error

#: umode_t, as which the kernel takes a mode, is an unsigned short.
_UMODE = 0xFFFF


def _dir_and_path(note: Notification, relative: bool) -> tuple[int, str, int]:
    """Return dirfd, path and the index of the argument after them."""
    if relative:
        return note.int_arg(0), path_argument(note, 1), 2
    return linux.AT_FDCWD, path_argument(note, 0), 1


def _make(note: Notification) -> int:
    dirfd, path, rest = _dir_and_path(note, note.name.endswith("at"))
    directory, name = parent(note, "file.write.create", dirfd, path)
    with directory:
        judge(note, "file.write.create", at(directory, name))
        mode = note.args[rest] & _UMODE & ~note.caller.umask()
        if note.name.startswith("mkdir"):
            os.mkdir(name, mode & 0o7777, dir_fd=directory.fd)
        else:
            if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
                raise error(errno.EPERM)
            os.mknod(name, mode & ~SET_ID, 0, dir_fd=directory.fd)
    return 0


def _symlink(note: Notification) -> int:
    target = path_argument(note, 0)
    dirfd, index = (note.int_arg(1), 2) if note.name == "symlinkat" else (linux.AT_FDCWD, 1)
    directory, name = parent(note, "file.write.create", dirfd, path_argument(note, index))
    with directory:
        judge(note, "file.write.create", at(directory, name), link=True)
        os.symlink(target, name, dir_fd=directory.fd)
    return 0


def _link(note: Notification) -> int:
    if note.name == "link":
        olddir = newdir = linux.AT_FDCWD
        old, new, flags = path_argument(note, 0), path_argument(note, 1), 0
    else:
        olddir, newdir, flags = note.int_arg(0), note.int_arg(2), note.int_arg(4)
        require_flags(flags, linux.AT_EMPTY_PATH | linux.AT_SYMLINK_FOLLOW)
        old, new = path_argument(note, 1), path_argument(note, 3)
    if flags & linux.AT_EMPTY_PATH and not old:
        source = note.mediator.resolver.pin_descriptor(note.caller, olddir)
    else:
        follow = bool(flags & linux.AT_SYMLINK_FOLLOW)
        source = pin(note, "file.write.link", olddir, old, follow=follow)
    with source:
        directory, name = parent(note, "file.write.link", newdir, new)
        with directory:
            # a second name would be judged by its own path: the first must be readable too
            require_read(note, source.path)
            link = stat.S_ISLNK(os.fstat(source.fd).st_mode)
            judge(note, "file.write.link", source.path, at(directory, name), link=link)
            os.link(
                f"/proc/self/fd/{source.fd}", name, dst_dir_fd=directory.fd, follow_symlinks=True
            )
    return 0


def _unlink(note: Notification) -> int:
    flags = note.int_arg(2) if note.name == "unlinkat" else 0
    require_flags(flags, linux.AT_REMOVEDIR)
    dirfd, path, _ = _dir_and_path(note, note.name == "unlinkat")
    is_dir = note.name == "rmdir" or flags & linux.AT_REMOVEDIR
    nameless = Nameless.REMOVED if is_dir else Nameless.UNLINKED
    directory, name = parent(note, "file.write.delete", dirfd, path, nameless)
    with directory:
        judge(note, "file.write.delete", at(directory, name))
        if is_dir:
            os.rmdir(name, dir_fd=directory.fd)
        else:
            os.unlink(name, dir_fd=directory.fd)
    return 0


def _rename(note: Notification) -> int:
    if note.name == "rename":
        olddir = newdir = linux.AT_FDCWD
        old, new, flags = path_argument(note, 0), path_argument(note, 1), 0
    else:
        olddir, newdir = note.int_arg(0), note.int_arg(2)
        old, new = path_argument(note, 1), path_argument(note, 3)
        flags = note.int_arg(4) if note.name == "renameat2" else 0
        # SAFETY: RENAME_WHITEOUT would also make a device, under a name that was only left
        require_flags(flags, linux.RENAME_NOREPLACE | linux.RENAME_EXCHANGE)
    source, name = parent(note, "file.write.rename", olddir, old, Nameless.RENAMED)
    with source:
        target, newname = parent(note, "file.write.rename", newdir, new, Nameless.RENAMED)
        with target:
            here, there = at(source, name), at(target, newname)
            require_read(note, here)
            if flags & linux.RENAME_EXCHANGE:
                require_read(note, there)
            try:
                judge(note, "file.write.rename", here, there)
                if flags & linux.RENAME_EXCHANGE:
                    judge(note, "file.write.rename", there, here)
            except OSError:
                # what the kernel says first, and mv(1) then copies
                if os.fstat(source.fd).st_dev != os.fstat(target.fd).st_dev:
                    raise error(errno.EXDEV) from None
                raise
            linux.renameat2(source.fd, os.fsencode(name), target.fd, os.fsencode(newname), flags)
    return 0


def handlers() -> dict[str, Handler]:
    """Return the handlers by the names of their calls."""
    table: dict[str, Handler] = dict.fromkeys(("mkdir", "mkdirat", "mknod", "mknodat"), _make)
    table |= dict.fromkeys(("symlink", "symlinkat"), _symlink)
    table |= dict.fromkeys(("link", "linkat"), _link)
    table |= dict.fromkeys(("unlink", "unlinkat", "rmdir"), _unlink)
    table |= dict.fromkeys(("rename", "renameat", "renameat2"), _rename)
    return table
