"""File calls, carried out by the supervisor on pinned files and parents."""

from __future__ import annotations

import errno
import os
import stat

from safeclaw.policies.model import Attempt, Decision, FileTarget
from safeclaw.sandbox import interrupt, linux
from safeclaw.sandbox.caller import read_exact, read_string
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import Pinned, error, join

_XATTR_MAX = 65536
#: The openat2(2) resolve flag that holds for every walk of the supervisor; with the others the
#: call is answered as by a kernel that has it not.
_RESOLVE_PASSED = linux.RESOLVE_NO_MAGICLINKS
#: umode_t, as which the kernel takes a mode, is an unsigned short.
_UMODE = 0xFFFF
_SET_ID = stat.S_ISUID | stat.S_ISGID
METADATA_CALLS = (
    *("chmod", "fchmodat", "fchmodat2", "fchmod", "chown", "lchown", "fchownat", "fchown"),
    *("utimensat", "setxattr", "lsetxattr", "fsetxattr"),
    *("removexattr", "lremovexattr", "fremovexattr"),
)
_DEV_TTY = os.makedev(5, 0)
#: How many names are remembered as regular files, and how long they may be.
_PLAIN_MAX, _PLAIN_LENGTH_MAX = 65536, 512
_HOSTS = "/etc/hosts"
_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def _path(note: Notification, index: int) -> str:
    return os.fsdecode(read_string(note.pid, note.args[index]))


def judge_missing(note: Notification, action: str, dirfd: int, path: str) -> None:
    """Record an attempt on a name that is not in the view; the errno is the caller's affair."""
    where = note.mediator.resolver.where(note.caller, dirfd, path)
    hidden = os.path.lexists(where) and not where.startswith(("/proc/", "/tmp/"))
    note.decide(Attempt(action, FileTarget(where)), "view" if hidden else "absent")


def pin(note: Notification, action: str, dirfd: int, path: str, *, follow: bool = True) -> Pinned:
    """Pin a file that is to be there; a missing one is recorded under ``action``."""
    try:
        return note.mediator.resolver.pin(note.caller, dirfd, path, follow=follow)
    except OSError as problem:
        if problem.errno in _ABSENT or problem.errno == errno.EACCES:
            judge_missing(note, action, dirfd, path)
        raise


def parent(note: Notification, action: str, dirfd: int, path: str) -> tuple[Pinned, str]:
    """Pin the parent of a name; a missing parent is recorded under ``action``."""
    try:
        return note.mediator.resolver.pin_parent(note.caller, dirfd, path)
    except OSError as problem:
        if problem.errno in _ABSENT or problem.errno == errno.EACCES:
            judge_missing(note, action, dirfd, path)
        raise


def _judge(note: Notification, action: str, path: str, to: str | None = None) -> None:
    note.judge(Attempt(action, FileTarget(path, to)))


def _require_read(note: Notification, path: str) -> None:
    """Refuse, and record, a write that would also expose what may not be read."""
    attempt = Attempt("file.read", FileTarget(path))
    if note.mediator.gate.peek(attempt).decision is not Decision.ALLOW:
        note.judge(attempt)


# --- open -------------------------------------------------------------------------------


def _open(note: Notification) -> int | None:
    match note.name:
        case "open":
            dirfd, index, flags, mode = linux.AT_FDCWD, 0, note.int_arg(1), note.int_arg(2)
        case "creat":
            dirfd, index = linux.AT_FDCWD, 0
            flags, mode = os.O_CREAT | os.O_WRONLY | os.O_TRUNC, note.int_arg(1)
        case "openat":
            dirfd, index, flags, mode = note.int_arg(0), 1, note.int_arg(2), note.int_arg(3)
        case _:
            dirfd, index = note.int_arg(0), 1
            if note.args[3] < 24:
                raise error(errno.EINVAL)
            how = read_exact(note.pid, note.args[2], 24)
            flags = int.from_bytes(how[:8], "little")
            mode = int.from_bytes(how[8:16], "little")
            resolve = int.from_bytes(how[16:], "little")
            if flags >> 31 or mode & ~0o7777:
                raise error(errno.EINVAL)
            if resolve & ~_RESOLVE_PASSED:
                raise error(errno.ENOSYS)
    path = _path(note, index)
    writes = flags & os.O_ACCMODE or flags & (os.O_CREAT | os.O_TRUNC)
    if flags & linux.O_PATH:
        return _open_path(note, dirfd, path, flags)
    if not writes:
        return _open_read(note, dirfd, path, flags)
    return _open_write(note, dirfd, path, flags, mode)


def _send(note: Notification, fd: int, flags: int) -> None:
    try:
        note.send_descriptor(fd, cloexec=bool(flags & os.O_CLOEXEC))
    finally:
        os.close(fd)


def _open_path(note: Notification, dirfd: int, path: str, flags: int) -> int | None:
    # An O_PATH descriptor cannot be injected (EBADF): hand over O_RDONLY, judged as a read.
    follow = not flags & os.O_NOFOLLOW
    with pin(note, "file.read", dirfd, path, follow=follow) as pinned:
        _judge(note, "file.read", pinned.path)
        _send(note, pinned.reopen(os.O_RDONLY | os.O_NONBLOCK | flags & os.O_DIRECTORY), flags)
    return None


def _open_read(note: Notification, dirfd: int, path: str, flags: int) -> int | None:
    resolver, caller = note.mediator.resolver, note.caller
    absolute = resolver.absolute(caller, dirfd, path)
    own = resolver.own_descriptor(caller, absolute)
    if own is not None:
        return _open_own(note, own, flags)
    plain = note.mediator.plain
    if absolute not in plain or not _open_plain(note, absolute, dirfd, path, flags):
        with pin(note, "file.read", dirfd, path, follow=not flags & os.O_NOFOLLOW) as pinned:
            if _open_pinned(note, pinned, flags):
                if len(plain) < _PLAIN_MAX and len(absolute) < _PLAIN_LENGTH_MAX:
                    plain.add(absolute)
                _remember(note, absolute, pinned.path)
    return None


def _open_plain(note: Notification, absolute: str, dirfd: int, path: str, flags: int) -> bool:
    """Open what was a regular file before in one go; False: it is a FIFO now."""
    resolver, caller, plain = note.mediator.resolver, note.caller, note.mediator.plain
    try:
        # SAFETY: O_NONBLOCK, so that a FIFO put in the file's place cannot hold the loop.
        fd = resolver.open(absolute, flags | os.O_NONBLOCK)
    except OSError as problem:
        plain.discard(absolute)
        if problem.errno in _ABSENT or problem.errno in (errno.EACCES, errno.ENXIO):
            judge_missing(note, "file.read", dirfd, path)
        raise
    try:
        kind = stat.S_IFMT(os.fstat(fd).st_mode)
        if kind != stat.S_IFREG:
            plain.discard(absolute)
        if kind == stat.S_IFIFO:
            return False
        # a caller that has gone meanwhile is found by ADDFD: nothing else is done for it
        real = resolver.canonical(caller, resolver.place(fd))
        note.judge(Attempt("file.read", FileTarget(real)), alive=False)
        if not flags & os.O_NONBLOCK:
            os.set_blocking(fd, True)
        note.send_descriptor(fd, cloexec=bool(flags & os.O_CLOEXEC))
        if absolute in plain:
            _remember(note, absolute, real)
    finally:
        os.close(fd)
    return True


def _remember(note: Notification, absolute: str, real: str) -> None:
    note.mediator.remember(note.caller, absolute, FileTarget(real), "seccomp-notify")


def _open_pinned(note: Notification, pinned: Pinned, flags: int) -> bool:
    """Open what was pinned for reading; True for a regular file, which opens at once."""
    kind = stat.S_IFMT(os.fstat(pinned.fd).st_mode)
    _judge(note, "file.read", pinned.path)
    if kind == stat.S_IFLNK:
        raise error(errno.ELOOP)
    if kind == stat.S_IFIFO and not flags & os.O_NONBLOCK:
        _wait_for_fifo(note, pinned, flags)
        return False
    hosts = note.mediator.hosts
    if hosts is not None and pinned.path == _HOSTS:
        # names are resolved for it, which takes its time
        note.mediator.background(note, lambda: _send(note, hosts.open(), flags))
        return False
    fd = _reopen(note, pinned, flags & ~os.O_NOFOLLOW | os.O_NONBLOCK)
    if not flags & os.O_NONBLOCK:
        os.set_blocking(fd, True)
    _send(note, fd, flags)
    return kind == stat.S_IFREG


def _open_own(note: Notification, number: int, flags: int) -> int | None:
    with note.mediator.resolver.pin_descriptor(note.caller, number) as pinned:
        kind = stat.S_IFMT(os.fstat(pinned.fd).st_mode)
        handle = f"/proc/self/fd/{number}"
        held = kind in (stat.S_IFIFO, stat.S_IFCHR) and _holds(note, number, flags)
        if held or pinned.path == handle:
            # a pipe or terminal it has open already, or no name in any file system: nothing
            # new is reached
            _judge(note, "file.read", handle)
        else:
            return _open_existing(note, pinned, flags & ~(os.O_CREAT | os.O_EXCL))
        if kind == stat.S_IFIFO and not flags & os.O_NONBLOCK:
            _wait_for_fifo(note, pinned, flags)
            return None
        keep = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        _send(note, pinned.reopen(keep), flags)
    return None


def _holds(note: Notification, number: int, flags: int) -> bool:
    """Whether the caller's descriptor is really open, and gives what ``flags`` ask for.

    SAFETY: an O_PATH descriptor was never judged, so it counts for nothing here.
    """
    with open(f"/proc/{note.caller.tgid}/fdinfo/{number}") as source:
        fields = dict(line.split(":", 1) for line in source if ":" in line)
    has = int(fields["flags"], 8)
    wanted, given = flags & os.O_ACCMODE, has & os.O_ACCMODE
    return not has & linux.O_PATH and (given == os.O_RDWR or wanted == given)


def _wait_for_fifo(note: Notification, pinned: Pinned, flags: int) -> None:
    """Open a judged FIFO, waiting for its other end in a thread of its own."""
    own = Pinned(os.dup(pinned.fd), pinned.path)

    def work() -> None:
        with own:
            keep = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
            fd = interrupt.waiting(note, lambda: own.reopen_waiting(keep))
            # An end that stayed open here, if only for a moment, would be another's other end.
            try:
                number = note.add_descriptor(fd, cloexec=bool(flags & os.O_CLOEXEC))
            finally:
                os.close(fd)
            note.reply(value=number)

    try:
        note.mediator.background(note, work)
    except BaseException:
        os.close(own.fd)
        raise


def _open_write(note: Notification, dirfd: int, path: str, flags: int, mode: int) -> int | None:
    if flags & linux.O_TMPFILE == linux.O_TMPFILE:
        return _open_tmpfile(note, dirfd, path, flags, mode)
    resolver, caller = note.mediator.resolver, note.caller
    own = resolver.own_descriptor(caller, resolver.absolute(caller, dirfd, path))
    if own is not None:
        return _open_own(note, own, flags)
    exclusive = flags & os.O_CREAT and flags & os.O_EXCL
    follow = not (exclusive or flags & os.O_NOFOLLOW)
    for _ in range(40):
        try:
            pinned = resolver.pin(caller, dirfd, path, follow=follow)
        except OSError as problem:
            if problem.errno == errno.ENOENT and flags & os.O_CREAT:
                target = _create(note, dirfd, path, flags, mode)
                if target is None:
                    return None
                dirfd, path = linux.AT_FDCWD, target
                continue
            judge_missing(note, "file.write.modify", dirfd, path)
            raise
        with pinned:
            return _open_existing(note, pinned, flags)
    raise error(errno.ELOOP)


def _open_existing(note: Notification, pinned: Pinned, flags: int) -> int | None:
    kind = stat.S_IFMT(os.fstat(pinned.fd).st_mode)
    if flags & os.O_CREAT and flags & os.O_EXCL:
        _judge(note, "file.write.create", pinned.path)
        raise error(errno.EEXIST)
    if kind == stat.S_IFLNK:
        _judge(note, "file.write.modify", pinned.path)
        raise error(errno.ELOOP)
    if flags & os.O_ACCMODE == os.O_RDWR and kind == stat.S_IFREG:
        _require_read(note, pinned.path)
    access = flags & os.O_ACCMODE or flags & os.O_TRUNC
    _judge(note, "file.write.modify" if access else "file.read", pinned.path)
    if kind == stat.S_IFIFO and not flags & os.O_NONBLOCK:
        _wait_for_fifo(note, pinned, flags)
        return None
    keep = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
    _send(note, _reopen(note, pinned, keep), flags)
    return None


def _reopen(note: Notification, pinned: Pinned, flags: int) -> int:
    """Open what was pinned and judged; /dev/tty is the terminal of the caller, not ours."""
    if os.fstat(pinned.fd).st_rdev != _DEV_TTY:
        return pinned.reopen(flags)
    session, device = note.caller.terminal()
    if session == os.getsid(0):
        return pinned.reopen(flags)
    if not device:
        raise error(errno.ENXIO)
    fd = note.mediator.resolver.open(f"/dev/pts/{os.minor(device)}", flags)
    if os.fstat(fd).st_rdev != device:
        os.close(fd)
        raise error(errno.ENXIO)
    return fd


def _create(note: Notification, dirfd: int, path: str, flags: int, mode: int) -> str | None:
    """Create and hand over; or return where a dangling symlink points instead."""
    if path.endswith("/"):
        raise error(errno.EISDIR)
    directory, name = parent(note, "file.write.create", dirfd, path)
    with directory:
        if not flags & (os.O_EXCL | os.O_NOFOLLOW):
            try:
                leads = os.readlink(name, dir_fd=directory.fd)
            except OSError:
                pass
            else:
                return leads if leads.startswith("/") else join(directory.path, leads)
        _judge(note, "file.write.create", join(directory.path, name))
        fd = os.open(
            name,
            flags | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK,
            _new_mode(note, mode),
            dir_fd=directory.fd,
        )
        if not flags & os.O_NONBLOCK:
            os.set_blocking(fd, True)
        _send(note, fd, flags)
    return None


def _new_mode(note: Notification, mode: int) -> int:
    """Return the mode of a new file.

    SAFETY: never set-user-ID or set-group-ID: outside the walls it would give away the
    person's rights.
    """
    return mode & 0o7777 & ~_SET_ID & ~note.caller.umask()


def _open_tmpfile(note: Notification, dirfd: int, path: str, flags: int, mode: int) -> int | None:
    with pin(note, "file.write.create", dirfd, path) as directory:
        _judge(note, "file.write.create", join(directory.path, "#tmpfile"))
        fd = os.open(
            f"/proc/self/fd/{directory.fd}",
            flags | os.O_CLOEXEC,
            _new_mode(note, mode),
        )
        _send(note, fd, flags)
    return None


# --- create, delete, rename, link -------------------------------------------------------


def _dir_and_path(note: Notification, at: bool) -> tuple[int, str, int]:
    """Return dirfd, path and the index of the argument after them."""
    if at:
        return note.int_arg(0), _path(note, 1), 2
    return linux.AT_FDCWD, _path(note, 0), 1


def _make(note: Notification) -> int:
    dirfd, path, rest = _dir_and_path(note, note.name.endswith("at"))
    directory, name = parent(note, "file.write.create", dirfd, path)
    with directory:
        _judge(note, "file.write.create", join(directory.path, name))
        mode = note.args[rest] & _UMODE & ~note.caller.umask()
        if note.name.startswith("mkdir"):
            os.mkdir(name, mode & 0o7777, dir_fd=directory.fd)
        else:
            if stat.S_IFMT(mode) in (stat.S_IFCHR, stat.S_IFBLK):
                raise error(errno.EPERM)
            os.mknod(name, mode & ~_SET_ID, 0, dir_fd=directory.fd)
    return 0


def _symlink(note: Notification) -> int:
    target = _path(note, 0)
    at = note.name == "symlinkat"
    dirfd = note.int_arg(1) if at else linux.AT_FDCWD
    directory, name = parent(note, "file.write.create", dirfd, _path(note, 2 if at else 1))
    with directory:
        _judge(note, "file.write.create", join(directory.path, name))
        os.symlink(target, name, dir_fd=directory.fd)
    return 0


def _link(note: Notification) -> int:
    if note.name == "link":
        olddir = newdir = linux.AT_FDCWD
        old, new, flags = _path(note, 0), _path(note, 1), 0
    else:
        olddir, newdir, flags = note.int_arg(0), note.int_arg(2), note.int_arg(4)
        old, new = _path(note, 1), _path(note, 3)
    if flags & linux.AT_EMPTY_PATH and not old:
        source = note.mediator.resolver.pin_descriptor(note.caller, olddir)
    else:
        follow = bool(flags & linux.AT_SYMLINK_FOLLOW)
        source = pin(note, "file.write.link", olddir, old, follow=follow)
    with source:
        directory, name = parent(note, "file.write.link", newdir, new)
        with directory:
            # a second name would be judged by its own path: the first must be readable too
            _require_read(note, source.path)
            _judge(note, "file.write.link", source.path, join(directory.path, name))
            os.link(
                f"/proc/self/fd/{source.fd}", name, dst_dir_fd=directory.fd, follow_symlinks=True
            )
    return 0


def _unlink(note: Notification) -> int:
    dirfd, path, _ = _dir_and_path(note, note.name == "unlinkat")
    is_dir = note.name == "rmdir" or (
        note.name == "unlinkat" and note.int_arg(2) & linux.AT_REMOVEDIR
    )
    directory, name = parent(note, "file.write.delete", dirfd, path)
    with directory:
        _judge(note, "file.write.delete", join(directory.path, name))
        if is_dir:
            os.rmdir(name, dir_fd=directory.fd)
        else:
            os.unlink(name, dir_fd=directory.fd)
    return 0


def _rename(note: Notification) -> int:
    if note.name == "rename":
        olddir = newdir = linux.AT_FDCWD
        old, new, flags = _path(note, 0), _path(note, 1), 0
    else:
        olddir, newdir = note.int_arg(0), note.int_arg(2)
        old, new = _path(note, 1), _path(note, 3)
        flags = note.int_arg(4) if note.name == "renameat2" else 0
    source, name = parent(note, "file.write.rename", olddir, old)
    with source:
        target, newname = parent(note, "file.write.rename", newdir, new)
        with target:
            here, there = join(source.path, name), join(target.path, newname)
            _require_read(note, here)
            if flags & linux.RENAME_EXCHANGE:
                _require_read(note, there)
            _judge(note, "file.write.rename", here, there)
            linux.renameat2(source.fd, os.fsencode(name), target.fd, os.fsencode(newname), flags)
    return 0


# --- contents and metadata --------------------------------------------------------------


def _truncate(note: Notification) -> int:
    with pin(note, "file.write.modify", linux.AT_FDCWD, _path(note, 0)) as pinned:
        _judge(note, "file.write.modify", pinned.path)
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
        return pin(note, "file.write.metadata", linux.AT_FDCWD, _path(note, 0), follow=follow), 1
    flag = {"fchownat": 4, "fchmodat2": 3, "utimensat": 3}.get(name)
    flags = note.int_arg(flag) if flag is not None else 0
    path = _path(note, 1) if note.args[1] else ""
    if not path and (flags & linux.AT_EMPTY_PATH or name == "utimensat"):
        return note.mediator.resolver.pin_descriptor(note.caller, note.int_arg(0)), 2
    follow = not flags & linux.AT_SYMLINK_NOFOLLOW
    return pin(note, "file.write.metadata", note.int_arg(0), path, follow=follow), 2


def _id(value: int) -> int:
    """Return a uid_t or gid_t as os.chown takes it: unsigned, and -1 for "leave it"."""
    value &= 0xFFFFFFFF
    return -1 if value == 0xFFFFFFFF else value


def _metadata(note: Notification) -> int:
    pinned, rest = _subject(note)
    with pinned:
        _judge(note, "file.write.metadata", pinned.path)
        name, handle = note.name, f"/proc/self/fd/{pinned.fd}"
        symlink = stat.S_ISLNK(os.fstat(pinned.fd).st_mode)
        if "chmod" in name:
            if symlink:
                raise error(errno.EOPNOTSUPP)
            mode = note.int_arg(rest) & 0o7777
            if mode & _SET_ID and not stat.S_ISDIR(os.fstat(pinned.fd).st_mode):
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
    """Return the handler of every file call, by name."""
    table: dict[str, Handler] = dict.fromkeys(("open", "openat", "openat2", "creat"), _open)
    table |= dict.fromkeys(("mkdir", "mkdirat", "mknod", "mknodat"), _make)
    table |= dict.fromkeys(("symlink", "symlinkat"), _symlink)
    table |= dict.fromkeys(("link", "linkat"), _link)
    table |= dict.fromkeys(("unlink", "unlinkat", "rmdir"), _unlink)
    table |= dict.fromkeys(("rename", "renameat", "renameat2"), _rename)
    table["truncate"] = _truncate
    for name in METADATA_CALLS:
        table[name] = _metadata
    return table
