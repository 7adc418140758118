"""open(2) and its kin, carried out by the supervisor: a descriptor is handed over, or nothing."""

from __future__ import annotations

import errno
import os
import stat

from safeclaw.policies.model import Attempt, FileTarget
from safeclaw.sandbox import interrupt, linux
from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.pinning import (
    ABSENT,
    judge,
    judge_missing,
    judge_with_read,
    new_mode,
    parent,
    path_argument,
    pin,
)
from safeclaw.sandbox.resolve import (
    RESOLVE_LITERALLY,
    UNHELD,
    Nameless,
    Pinned,
    at,
    error,
    held,
    join,
)

#: The openat2(2) resolve flag that holds for every walk of the supervisor; with the others the
#: call is answered as by a kernel that has it not.
_RESOLVE_PASSED = linux.RESOLVE_NO_MAGICLINKS
_DEV_TTY = os.makedev(5, 0)
#: How many names are remembered as regular files, and how long they may be.
_PLAIN_MAX, _PLAIN_LENGTH_MAX = 65536, 512
_HOSTS = "/etc/hosts"


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
    path = path_argument(note, index)
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
    resolver, caller = note.mediator.resolver, note.caller
    own = resolver.own_descriptor(caller, resolver.absolute(caller, dirfd, path))
    if own is not None and follow:
        return _open_own(note, own, os.O_NONBLOCK | flags & (os.O_DIRECTORY | os.O_CLOEXEC))
    with pin(note, "file.read", dirfd, path, follow=follow) as pinned:
        judge(note, "file.read", pinned.path)
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
                literal = absolute == pinned.path
                if literal and len(plain) < _PLAIN_MAX and len(absolute) < _PLAIN_LENGTH_MAX:
                    plain.add(absolute)
                _remember(note, absolute, pinned.path)
    return None


def _open_plain(note: Notification, absolute: str, dirfd: int, path: str, flags: int) -> bool:
    """Open what was a regular file by its canonical name in one go; False: it is not any more."""
    resolver, caller, plain = note.mediator.resolver, note.caller, note.mediator.plain
    try:
        # SAFETY: O_NONBLOCK, so that a FIFO put in the file's place cannot hold the loop.  And no
        # link: merely to open what may not be read can have an effect (a FIFO's writer goes on).
        fd = resolver.open(absolute, flags | os.O_NONBLOCK, RESOLVE_LITERALLY)
    except OSError as problem:
        plain.discard(absolute)
        if problem.errno == errno.ELOOP:
            return False
        if problem.errno in ABSENT or problem.errno in (errno.EACCES, errno.ENXIO):
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
    judge(note, "file.read", pinned.path)
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
        nameless = pinned.path in (handle, UNHELD + handle)
        has = (nameless or kind in (stat.S_IFIFO, stat.S_IFCHR)) and _holds(
            note, number, pinned, flags
        )
        if nameless and not has:
            # SAFETY: the other end of a pipe, or writing to a file that it may only read, is new
            if flags & (os.O_ACCMODE | os.O_TRUNC) == os.O_RDONLY:
                # under no name of a rule's: each policy lets a process read its own /proc
                judge(note, "file.read", UNHELD + handle)
            judge(note, "file.write.modify", pinned.path)
        elif has:
            # a pipe or terminal, or what has no name in its view, open already: nothing new
            judge(note, "file.read", handle)
        else:
            return _open_existing(note, pinned, flags & ~(os.O_CREAT | os.O_EXCL))
        if kind == stat.S_IFIFO and not flags & os.O_NONBLOCK:
            _wait_for_fifo(note, pinned, flags)
            return None
        keep = flags & ~(os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW)
        _send(note, pinned.reopen(keep), flags)
    return None


def _holds(note: Notification, number: int, pinned: Pinned, flags: int) -> bool:
    """Whether the caller has what was pinned open, with all that ``flags`` ask for.

    SAFETY: an O_PATH descriptor was never judged, so it counts for nothing here.
    """
    has = held(note.caller, number, pinned.fd)
    wanted, given = flags & os.O_ACCMODE, has & os.O_ACCMODE
    if has & linux.O_PATH or (flags & os.O_TRUNC and given == os.O_RDONLY):
        return False
    return given == os.O_RDWR or wanted == given


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
        if flags & os.O_CREAT and path.endswith("/"):
            with parent(note, "file.write.create", dirfd, path, Nameless.UNLINKED)[0]:
                raise error(errno.EISDIR)
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
        judge(note, "file.write.create", pinned.path)
        raise error(errno.EEXIST)
    if kind == stat.S_IFLNK:
        judge(note, "file.write.modify", pinned.path)
        raise error(errno.ELOOP)
    if flags & os.O_CREAT and kind == stat.S_IFDIR:
        raise error(errno.EISDIR)
    access = flags & os.O_ACCMODE or flags & os.O_TRUNC
    if access and flags & os.O_ACCMODE != os.O_WRONLY:
        # SAFETY: opened to be cut (O_TRUNC) it can be read, too, when somebody has written again
        judge_with_read(note, "file.write.modify", pinned.path)
    else:
        judge(note, "file.write.modify" if access else "file.read", pinned.path)
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
    """Create and hand over; or return the name to go on with.

    That is where a dangling symlink points, or the same where something is there by now.
    """
    directory, name = parent(note, "file.write.create", dirfd, path)
    with directory:
        here = at(directory, name)
        if not flags & (os.O_EXCL | os.O_NOFOLLOW):
            try:
                leads = os.readlink(name, dir_fd=directory.fd)
            except OSError:
                pass
            else:
                return leads if leads.startswith("/") else join(directory.path, leads)
        if flags & os.O_ACCMODE != os.O_WRONLY:
            # SAFETY: it can read what somebody else writes there later
            judge_with_read(note, "file.write.create", here)
        else:
            judge(note, "file.write.create", here)
        try:
            # SAFETY: O_EXCL, because a file that has come meanwhile was not judged: to make one
            # is not to change one.
            fd = os.open(
                name,
                flags | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOCTTY | os.O_NONBLOCK,
                new_mode(note, mode),
                dir_fd=directory.fd,
            )
        except FileExistsError:
            return here
        if not flags & os.O_NONBLOCK:
            os.set_blocking(fd, True)
        _send(note, fd, flags)
    return None


def _open_tmpfile(note: Notification, dirfd: int, path: str, flags: int, mode: int) -> int | None:
    follow = not flags & os.O_NOFOLLOW
    with pin(note, "file.write.create", dirfd, path, follow=follow) as directory:
        judge(note, "file.write.create", join(directory.path, "#tmpfile"))
        fd = os.open(
            f"/proc/self/fd/{directory.fd}",
            flags & ~os.O_NOFOLLOW | os.O_CLOEXEC,
            new_mode(note, mode),
        )
        _send(note, fd, flags)
    return None


def handlers() -> dict[str, Handler]:
    """Return the handlers by the names of their calls."""
    return dict.fromkeys(("open", "openat", "openat2", "creat"), _open)
