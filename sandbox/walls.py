"""The view: what of the host exists inside, put up as steps that can be printed.

An allow list built on an empty tmpfs: nothing is there that no step put there.
Runs as PID 1 of the agent's namespaces, with the capabilities of its own user
namespace only.  See mount_namespaces(7), user_namespaces(7), pivot_root(2).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import socket
import stat
import struct
from collections.abc import Generator, Iterator

import msgspec

from safeclaw.sandbox import linux

NAMESPACES = (
    linux.CLONE_NEWUSER
    | linux.CLONE_NEWNS
    | linux.CLONE_NEWPID
    | linux.CLONE_NEWNET
    | linux.CLONE_NEWIPC
    | linux.CLONE_NEWUTS
    | linux.CLONE_NEWCGROUP
)
NAMESPACE_NAMES = ("user", "mount", "pid", "net", "ipc", "uts", "cgroup")
_STAGE = "/tmp"
_OLD = "/.old"
#: Directories that are the session's own, empty at its start.
_PRIVATE = ("/tmp", "/var/tmp")
_DEVICES = ("null", "zero", "full", "random", "urandom", "tty")
#: The kernel keeps some terminals back for the host; the bound is for other sessions.
_DEVPTS = "newinstance,ptmxmode=0666,mode=620,max=256"
#: path_resolution(7)
_LINKS_MAX = 40
_IFF_UP_RUNNING = 0x1 | 0x40
_SIOCGIFFLAGS, _SIOCSIFFLAGS = 0x8913, 0x8914


class Step(msgspec.Struct, frozen=True):
    """One thing to put into the view; ``kind`` is bind, tmpfs, link, proc, dev or mask."""

    kind: str
    path: str
    writable: bool = False
    source: str = ""

    def __str__(self) -> str:
        mode = "rw" if self.writable else "ro"
        return f"{self.kind} {mode} {self.path}" + (f" -> {self.source}" if self.source else "")


def plan(
    view: tuple[str, ...], writable: tuple[str, ...], masked: tuple[str, ...]
) -> tuple[Step, ...]:
    """Return the steps for a view: parents before children, masks last.

    Reads the host's file system only to see which names are symbolic links.
    """
    binds: dict[str, Step] = {}
    for path in view:
        for link in _links(path):
            binds[link.path] = link
        real = os.path.realpath(path)
        if os.path.exists(real) and real not in _PRIVATE and not _below(real, ("/proc", "/dev")):
            rw = any(_within(real, os.path.realpath(root)) for root in writable)
            binds[real] = Step("bind", real, writable=rw)
    whole = binds.pop("/", None)
    ordered = [whole] if whole is not None else []
    ordered += [Step("proc", "/proc", True), Step("dev", "/dev", True)]
    # no directory is made in the host's own root
    ordered += [Step("tmpfs", path, True) for path in _PRIVATE if not whole or os.path.isdir(path)]
    for path in sorted(binds):
        step = binds[path]
        # what a bound directory shows already needs no step, but for its rights
        shown = any(
            outer.kind == "bind" and _within(path, outer.path) and outer.writable == step.writable
            for outer in (*binds.values(), *ordered)
            if outer.path != path
        )
        hidden = any(_within(path, private) for private in _PRIVATE)
        if not shown or (hidden and not _bound_below(path, ordered)):
            ordered.append(step)
    ordered += [Step("mask", path) for path in masked]
    return tuple(ordered)


def _below(path: str, roots: tuple[str, ...]) -> bool:
    return any(_within(path, root) for root in roots)


def _bound_below(path: str, steps: list[Step]) -> bool:
    """Whether a step below a private directory shows ``path`` already."""
    return any(
        step.kind == "bind" and _below(step.path, _PRIVATE) and _within(path, step.path)
        for step in steps
    )


def _within(path: str, root: str) -> bool:
    return root == "/" or path == root or path.startswith(root + "/")


def _links(path: str, depth: int = 0) -> Iterator[Step]:
    """Yield the symbolic links that stand on the way of ``path``; ``depth``: how many came before.

    As many as the kernel follows: in a circle there is no end of them.
    """
    current = ""
    for part in path.strip("/").split("/"):
        current = f"{current}/{part}"
        if os.path.islink(current) and depth < _LINKS_MAX:
            leads = os.readlink(current)
            yield Step("link", current, source=leads)
            yield from _links(os.path.join(os.path.dirname(current), leads), depth + 1)
            return


def identity() -> None:
    """Enter new namespaces, with every id that the caller may map standing for itself.

    An ordinary user may map nobody but themselves (user_namespaces(7)): the owners of other
    files are then seen as nobody.  Root sees everybody.  A map names; it gives no right.
    """
    uid, gid = os.geteuid(), os.getegid()
    mapped, waits = _map_from_outside() if uid == 0 else (-1, -1)
    try:
        linux.unshare(NAMESPACES)
    except OSError as problem:
        why = os.strerror(problem.errno or 0)
        raise OSError(problem.errno, f"no user namespace can be made here ({why})") from problem
    if uid == 0:
        os.close(waits)
        done = os.read(mapped, 1)
        os.close(mapped)
        os.wait()
        if done:
            return
    for name, text in (
        ("setgroups", "deny"),
        ("uid_map", f"{uid} {uid} 1"),
        ("gid_map", f"{gid} {gid} 1"),
    ):
        _write(f"/proc/self/{name}", text)


def _map_from_outside() -> tuple[int, int]:
    """Fork what maps all ids, once the caller has left: only one who stays behind may.

    Returns a pipe's end that says a byte when it is done, and one to close after leaving.
    """
    caller = os.getpid()
    maps = [(name, _same_ids(f"/proc/self/{name}")) for name in ("uid_map", "gid_map")]
    said_read, said_write = os.pipe()
    left_read, left_write = os.pipe()
    if os.fork():
        os.close(said_write)
        os.close(left_read)
        return said_read, left_write
    try:
        os.close(left_write)
        os.read(left_read, 1)
        for name, text in maps:
            _write(f"/proc/{caller}/{name}", text)
        os.write(said_write, b"+")
    finally:
        # root without the capability for it maps itself alone
        os._exit(0)


def _same_ids(path: str) -> str:
    """Return a map of all ids that the one at ``path`` has, each to itself."""
    with open(path) as source:
        lines = [line.split() for line in source]
    return "".join(f"{inner} {inner} {count}\n" for inner, _, count in lines)


def _write(path: str, text: str) -> None:
    with open(path, "w") as out:
        out.write(text)


def put_up(steps: tuple[Step, ...], cwd: str) -> None:
    """Build the view and make it the root; as PID 1 of the new namespaces."""
    persons = os.umask(0o022)  # which may keep even their owner out of directories
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
    linux.mount("tmpfs", _STAGE, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    os.mkdir(_STAGE + _OLD)
    linux.pivot_root(_STAGE, _STAGE + _OLD)
    os.chdir("/")
    os.mkdir("/.new", 0o755)
    linux.mount("tmpfs", "/.new", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=755")
    for step in steps:
        _PUT[step.kind](step)
    if not any(step.kind == "bind" and step.path == "/" and step.writable for step in steps):
        # the root itself, without what is mounted on it
        linux.mount(
            "none",
            "/.new",
            None,
            linux.MS_REMOUNT | linux.MS_BIND | linux.MS_RDONLY | linux.MS_NOSUID | linux.MS_NODEV,
        )
    linux.unmount(_OLD)
    os.chdir("/.new")
    linux.pivot_root(".", ".")
    linux.unmount(".")
    os.chdir(cwd)
    os.umask(persons)
    _loopback()


def _place(path: str, *, directory: bool) -> str:
    """Make the mount point for ``path`` and return it."""
    place = "/.new" + path
    os.makedirs(place if directory else os.path.dirname(place), exist_ok=True)
    if not directory and not os.path.lexists(place):
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600))
    return place


def _bind(step: Step) -> None:
    try:
        _place(step.path, directory=stat.S_ISDIR(os.stat(_OLD + step.path).st_mode))
    except FileExistsError:
        return
    except OSError:
        if os.path.lexists("/.new" + step.path):
            return
        raise
    # SAFETY: an agent of another session may turn a directory of its own into a link meanwhile.
    # What is canonical leads over none; what has one by now is not there.
    try:
        with _still(_OLD, step.path) as source, _still("/.new", step.path) as place:
            linux.mount(source, place, None, linux.MS_BIND | linux.MS_REC)
    except OSError as problem:
        if problem.errno == errno.ELOOP:
            return
        raise
    if not step.writable:
        with _still("/.new", step.path) as place:
            linux.make_read_only(place)


@contextlib.contextmanager
def _still(root: str, path: str) -> Generator[str]:
    """Hold what lies at a path below a root, over no symbolic link; give another name for it."""
    above = os.open(root, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        resolve = linux.RESOLVE_IN_ROOT | linux.RESOLVE_NO_SYMLINKS
        held = linux.openat2(above, os.fsencode(path), os.O_PATH | os.O_CLOEXEC, 0, resolve)
    finally:
        os.close(above)
    try:
        yield f"{_OLD}/proc/self/fd/{held}"
    finally:
        os.close(held)


def _link(step: Step) -> None:
    place = "/.new" + step.path
    if not os.path.lexists(place):
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(step.source, place)


def _tmpfs(step: Step) -> None:
    place = _place(step.path, directory=True)
    linux.mount("tmpfs", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")


def _proc(step: Step) -> None:
    place = _place(step.path, directory=True)
    flags = linux.MS_NOSUID | linux.MS_NODEV | linux.MS_NOEXEC
    linux.mount("proc", place, "proc", flags)


def _dev(step: Step) -> None:
    place = _place(step.path, directory=True)
    linux.mount("tmpfs", place, "tmpfs", linux.MS_NOSUID, "mode=755")
    for name in _DEVICES:
        if os.path.exists(f"{_OLD}/dev/{name}"):
            linux.mount(
                f"{_OLD}/dev/{name}", _place(f"/dev/{name}", directory=False), None, linux.MS_BIND
            )
    for name, target in (
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ):
        os.symlink(target, f"{place}/{name}")
    # an instance of its own: a terminal of the host has no name in it
    pts = _place("/dev/pts", directory=True)
    linux.mount("devpts", pts, "devpts", linux.MS_NOSUID | linux.MS_NOEXEC, _DEVPTS)
    os.symlink("pts/ptmx", f"{place}/ptmx")
    os.mkdir(f"{place}/shm")
    linux.mount("tmpfs", f"{place}/shm", "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=1777")


def _mask(step: Step) -> None:
    place = "/.new" + step.path
    if not os.path.lexists(place):
        return
    if os.path.isdir(place):
        linux.mount("tmpfs", place, "tmpfs", linux.MS_NOSUID | linux.MS_NODEV, "mode=0,size=4k")
        linux.make_read_only(place)
    else:
        linux.mount(f"{_OLD}/dev/null", place, None, linux.MS_BIND)


_PUT = {
    "bind": _bind,
    "link": _link,
    "tmpfs": _tmpfs,
    "proc": _proc,
    "dev": _dev,
    "mask": _mask,
}


def _loopback() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        request = struct.pack("16sH14x", b"lo", 0)
        request = fcntl.ioctl(sock, _SIOCGIFFLAGS, request)
        (flags,) = struct.unpack_from("H", request, 16)
        fcntl.ioctl(sock, _SIOCSIFFLAGS, struct.pack("16sH14x", b"lo", flags | _IFF_UP_RUNNING))
