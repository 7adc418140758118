"""From a caller's path to a pinned file and the path it really has.

Paths are walked by the kernel, in the agent's root, with magic links refused
(openat2(2)); what names the caller's own process is rewritten first, because
the supervisor is not in the agent's PID namespace.
"""

from __future__ import annotations

import enum
import errno
import fcntl
import os
import re
import stat
from typing import TYPE_CHECKING

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import Caller
from safeclaw.sandbox.kernels import is_hosts

if TYPE_CHECKING:
    from safeclaw.sandbox.confine import Confinement

RESOLVE = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_MAGICLINKS
#: How a canonical name is walked that is to lead nowhere else.
RESOLVE_LITERALLY = RESOLVE | linux.RESOLVE_NO_SYMLINKS
_PATH_FLAGS = linux.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW
_OPEN_FLAGS = (
    os.O_ACCMODE
    | os.O_APPEND
    | os.O_NONBLOCK
    | os.O_DSYNC
    | os.O_SYNC
    | os.O_ASYNC
    | os.O_DIRECT
    | os.O_DIRECTORY
    | os.O_NOFOLLOW
    | os.O_NOATIME
    | linux.O_LARGEFILE
)
_OWN_FD = re.compile(r"/proc/(?:self|thread-self|(\d+)(?:/task/\d+)?)/fd/(\d+)\Z")
_BELOW_OWN_FD = re.compile(r"/proc/(\d+)/fd/(\d+)/+([^/].*)\Z", re.DOTALL)
_ALIASES = {
    "/dev/stdin": "/proc/self/fd/0",
    "/dev/stdout": "/proc/self/fd/1",
    "/dev/stderr": "/proc/self/fd/2",
    "/dev/fd": "/proc/self/fd",
    "/proc/mounts": "/proc/self/mounts",
    "/proc/net": "/proc/self/net",
    "/etc/mtab": "/proc/self/mounts",
}
_SPECIAL = re.compile(r"/(?:\.?/)*(?:proc|(?:dev/(?:\.?/)*(?:fd|std))|(?:etc/(?:\.?/)*mtab))")


def error(code: int) -> OSError:
    """Return the OSError the agent is to see."""
    return OSError(code, os.strerror(code))


class HeldBackError(PermissionError):
    """A name that is not the session's where it has no view of its own; ``filename`` says which."""


class Nameless(enum.Enum):
    """The errors of a path that ends in no name (``/``, ``.``, ``..``), by what was to be done."""

    MADE = (errno.EEXIST, errno.EEXIST, errno.EEXIST)
    UNLINKED = (errno.EISDIR, errno.EISDIR, errno.EISDIR)
    REMOVED = (errno.EBUSY, errno.EINVAL, errno.ENOTEMPTY)
    RENAMED = (errno.EBUSY, errno.EBUSY, errno.EBUSY)


class Pinned:
    """An open O_PATH descriptor and the canonical path it has; closes itself."""

    __slots__ = ("fd", "path")

    def __init__(self, fd: int, path: str) -> None:
        self.fd = fd
        self.path = path

    def __enter__(self) -> Pinned:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.fd)

    def reopen(self, flags: int) -> int:
        """Open the pinned file itself with ``flags``; no name is walked again."""
        return os.open(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)

    def reopen_waiting(self, flags: int) -> int:
        """Do as ``reopen``, for what may wait; EINTR when the thread has a signal."""
        return linux.open_once(f"/proc/self/fd/{self.fd}", flags | os.O_CLOEXEC | os.O_NOCTTY)


_DELETED = " (deleted)"
_TERMINALS = "/dev/pts/"
#: What a descriptor's name begins with that is nothing to the agent but a place (O_PATH): no path,
#: so that no rule allows it.
UNHELD = "unheld:"


class Resolver:
    """Resolves in one agent's root; ``root`` is an O_PATH descriptor it borrows."""

    def __init__(self, root: int) -> None:
        self.root = root
        try:
            self._host_terminals = os.stat(_TERMINALS).st_dev
        except OSError:
            self._host_terminals = -1
        #: What the root does not hide by itself is held back by this.
        self.confinement: Confinement | None = None

    def path_of(self, fd: int) -> str:
        """Return the path of an open descriptor in the agent's view.

        SAFETY: the host's terminals have the names that the session's own have, and are
        judged by what they are instead: their device numbers.

        SAFETY: a file that has lost its name meanwhile is judged by the name it had, not by
        what the kernel writes behind it (proc_pid_fd(5)), which no rule would match.
        """
        path = os.readlink(f"/proc/self/fd/{fd}")
        if path.startswith(_TERMINALS):
            info = os.fstat(fd)
            if info.st_dev == self._host_terminals and stat.S_ISCHR(info.st_mode):
                return f"/dev/char/{os.major(info.st_rdev)}:{os.minor(info.st_rdev)}"
        if not path.endswith(_DELETED):
            return path
        found, named = os.fstat(fd), None
        try:
            other = self.open(path, linux.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return path[: -len(_DELETED)]
        try:
            named = os.fstat(other)
        finally:
            os.close(other)
        same = (named.st_dev, named.st_ino) == (found.st_dev, found.st_ino)
        return path if same else path[: -len(_DELETED)]

    def place(self, fd: int) -> str:
        """Return the path of a descriptor that was opened by name; ENOENT: not for the agent."""
        path = self.path_of(fd)
        if self.confinement is not None:
            self.confinement.require(fd, path)
        if is_hosts(fd, path):
            raise error(errno.ENOENT)
        return path

    def absolute(self, caller: Caller, dirfd: int, path: str) -> str:
        """Return ``path`` made absolute and with the caller's own names rewritten."""
        if not path:
            raise error(errno.ENOENT)
        if not path.startswith("/"):
            base = self.base(caller, dirfd)
            path = f"{base}/{path}" if base != "/" else f"/{path}"
        if _SPECIAL.match(path):
            path = self._own(caller, path)
            below = _BELOW_OWN_FD.match(path)
            if below and below[1] == str(caller.inner_tgid):
                # the name that execveat(2) gives a script's interpreter
                path = f"{self.base(caller, int(below[2]))}/{below[3]}"
        if self.confinement is not None:
            path = self.confinement.rewrite(path)
        return path

    def base(self, caller: Caller, dirfd: int) -> str:
        """Return the directory that a relative path of the caller starts from."""
        where = f"/proc/{caller.pid}/" + ("cwd" if dirfd == linux.AT_FDCWD else f"fd/{dirfd}")
        try:
            base = os.readlink(where)
            # a directory may be called so, and be there
            gone = base.endswith(_DELETED) and not os.stat(where).st_nlink
        except FileNotFoundError:
            raise error(errno.EBADF) from None
        if not base.startswith("/"):
            raise error(errno.ENOTDIR)
        if gone:
            raise error(errno.ENOENT)
        return base

    @staticmethod
    def _own(caller: Caller, path: str) -> str:
        trailing = "/" if path.endswith("/") else ""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if ".." in parts:
            return path  # the kernel walks it; /proc/self is then simply not there
        path = "/" + "/".join(parts)
        for alias, real in _ALIASES.items():
            if path == alias or path.startswith(alias + "/"):
                path = real + path[len(alias) :]
        own = f"/proc/{caller.inner_tgid}"
        if path == "/proc/self" or path.startswith("/proc/self/"):
            path = own + path[len("/proc/self") :]
        elif path == "/proc/thread-self" or path.startswith("/proc/thread-self/"):
            path = f"{own}/task/{caller.inner_tid}" + path[len("/proc/thread-self") :]
        return path + trailing

    @staticmethod
    def own_descriptor(caller: Caller, path: str) -> int | None:
        """Return N when ``path`` is the caller's own /proc/self/fd/N."""
        match = _OWN_FD.match(path)
        if match and match[1] == str(caller.inner_tgid):
            return int(match[2])
        return None

    @staticmethod
    def canonical(caller: Caller, path: str) -> str:
        """Return the path as policy sees it: the caller's own entries are /proc/self."""
        own = f"/proc/{caller.inner_tgid}"
        if path == own or path.startswith(own + "/"):
            return "/proc/self" + path[len(own) :]
        return path

    def open(self, path: str, flags: int, resolve: int = RESOLVE) -> int:
        """openat2 in the agent's root."""
        # openat2(2) refuses what open(2) ignores: unknown bits, and most bits beside O_PATH
        flags &= _PATH_FLAGS if flags & linux.O_PATH else _OPEN_FLAGS
        extra = os.O_CLOEXEC if flags & linux.O_PATH else os.O_CLOEXEC | os.O_NOCTTY
        return linux.openat2(self.root, os.fsencode(path), flags | extra, 0, resolve)

    def pin(self, caller: Caller, dirfd: int, path: str, *, follow: bool = True) -> Pinned:
        """Pin an existing file."""
        path = self.absolute(caller, dirfd, path)
        own = self.own_descriptor(caller, path)
        if own is not None and follow:
            return self.pin_descriptor(caller, own)
        fd = self.open(path, linux.O_PATH | (0 if follow else os.O_NOFOLLOW))
        try:
            return Pinned(fd, self.canonical(caller, self.place(fd)))
        except BaseException:
            os.close(fd)
            raise

    def pin_descriptor(self, caller: Caller, number: int) -> Pinned:
        """Pin what the caller's own descriptor ``number`` refers to.

        SAFETY: what has no name in the agent's view is judged as its own descriptor, which it has
        open already; where it has not (O_PATH), by no name that a rule could allow.
        """
        try:
            fd = os.open(f"/proc/{caller.pid}/fd/{number}", linux.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            raise error(errno.EBADF) from None
        try:
            path = self.path_of(fd)
            if not self._is_here(caller, number, fd, path):
                is_open = not held(caller, number, fd) & linux.O_PATH
                path = ("" if is_open else UNHELD) + f"/proc/self/fd/{number}"
        except BaseException:
            os.close(fd)
            raise
        return Pinned(fd, self.canonical(caller, path))

    def _is_here(self, caller: Caller, number: int, fd: int, path: str) -> bool:
        """Whether a descriptor's path means in the agent's view what it says.

        SAFETY: what the agent was handed may lie where its view has another file of that name
        (/tmp, another mount namespace): it must not be judged as a file of the session's own.
        """
        if not path.startswith("/") or path.startswith("/memfd:"):
            return False
        if self.confinement is not None:
            is_open = not held(caller, number, fd) & linux.O_PATH
            try:
                self.confinement.require(fd, path, held=is_open)
            except OSError:
                return False
        if is_hosts(fd, path):
            return False
        if path.startswith("/dev/char/"):
            return True  # what path_of has named
        found = self._at(path)
        if found is not None and os.path.samestat(found[0], os.fstat(fd)):
            return True
        # the name is gone, or another file's by now: in the mount where it was, all the same?
        while path != "/":
            path = os.path.dirname(path)
            found = self._at(path)
            if found is not None:
                return found[1] == _mount(fd)
        return False

    def _at(self, path: str) -> tuple[os.stat_result, str] | None:
        """Return what a path is in the agent's view, and the id of its mount.

        SAFETY: None where it leads over a link: those are the agent's to make.
        """
        try:
            fd = self.open(path, linux.O_PATH | os.O_NOFOLLOW)
        except OSError:
            return None
        try:
            return (os.fstat(fd), _mount(fd)) if self.path_of(fd) == path else None
        finally:
            os.close(fd)

    def pin_parent(
        self, caller: Caller, dirfd: int, path: str, nameless: Nameless = Nameless.MADE
    ) -> tuple[Pinned, str]:
        """Pin the directory that holds ``path``'s last component; return it and the name.

        The name keeps a slash behind it, which asks the kernel for a directory: ``at`` joins
        the two without.  ``nameless`` says what a path that ends in no name is answered with.
        """
        path = self.absolute(caller, dirfd, path)
        stripped = path.rstrip("/")
        head, _, name = stripped.rpartition("/")
        if len(os.fsencode(name)) > 255:
            raise error(errno.ENAMETOOLONG)
        fd = self.open(head or "/", linux.O_PATH | os.O_DIRECTORY)
        try:
            if name in ("", ".", ".."):
                raise error(nameless.value[("", ".", "..").index(name)])
            directory = Pinned(fd, self.canonical(caller, self.path_of(fd)))
            # SAFETY: names are made and removed there, too: cgroups, trace instances, BPF objects
            if is_hosts(fd, directory.path):
                raise error(errno.ENOENT)
            if self.confinement is not None:
                self._require_shown(directory, name)
        except BaseException:
            os.close(fd)
            raise
        return directory, name + "/" if path.endswith("/") else name

    def _require_shown(self, directory: Pinned, name: str) -> None:
        """Raise HeldBackError where a name is not the session's, or stands for what is held back.

        SAFETY: a file that is there and held back may not be taken for one that is to be made.
        """
        assert self.confinement is not None
        path = join(directory.path, name)
        refusal = HeldBackError(errno.EACCES, os.strerror(errno.EACCES), path)
        if not self.confinement.shows(path):
            raise refusal
        try:
            fd = os.open(name, linux.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory.fd)
        except FileNotFoundError:
            return
        try:
            self.confinement.require(fd, self.path_of(fd))
        except OSError:
            raise refusal from None
        finally:
            os.close(fd)

    def where(self, caller: Caller, dirfd: int, path: str) -> str:
        """Return where ``path`` would be, though it is not there, for a record."""
        try:
            parent, name = self.pin_parent(caller, dirfd, path)
        except OSError:
            return os.path.normpath(self.absolute(caller, dirfd, path))
        with parent:
            return at(parent, name)


def held(caller: Caller, number: int, fd: int) -> int:
    """Return the flags with which the caller has open what was pinned; O_PATH: it has not.

    SAFETY: one and the same descriptor says what is open and how.  The number alone may stand for
    another by now, and for another still in the table of the thread group's leader (clone(2)).
    """
    try:
        own = caller.duplicate(number)
    except OSError:
        return linux.O_PATH
    try:
        same = os.path.sameopenfile(own, fd)
        return fcntl.fcntl(own, fcntl.F_GETFL) if same else linux.O_PATH
    finally:
        os.close(own)


def _mount(fd: int) -> str:
    """Return the id of the mount that a descriptor lies in (proc_pid_fdinfo(5))."""
    with open(f"/proc/self/fdinfo/{fd}") as source:
        return dict(line.split(":", 1) for line in source)["mnt_id"]


def join(directory: str, name: str) -> str:
    """Join a canonical directory and a name."""
    return f"/{name}" if directory == "/" else f"{directory}/{name}"


def at(directory: Pinned, name: str) -> str:
    """Return the canonical path of a name that ``pin_parent`` gave with its directory."""
    return join(directory.path, name.rstrip("/"))
