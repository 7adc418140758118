"""A cgroup v2 of the session's own, below one that was delegated to the person.

Made before the agent, entered by the session's first process, removed with the
session.  See cgroups(7) and the kernel's admin-guide/cgroup-v2: controllers can be
handed down only by a cgroup that holds no process itself, so the processes of the
delegated one, the supervisor among them, are moved to a leaf beside the session's.
"""

from __future__ import annotations

import contextlib
import os
import select

MOUNTS = ("/sys/fs/cgroup", "/sys/fs/cgroup/unified")
#: The leaf for whoever was in the delegated cgroup before.
_LEAF = "safeclaw-supervisors"
_REMOVAL_MS = 2000


class CgroupError(Exception):
    """Why there is no cgroup to be had here."""


def delegated(controllers: tuple[str, ...]) -> str:
    """Return the delegated cgroup this process is in.  Raises CgroupError."""
    own = None
    with contextlib.suppress(OSError), open("/proc/self/cgroup") as source:
        for line in source:
            if line.startswith("0::"):
                own = line[3:].rstrip("\n").rstrip("/")
    if own is None:
        raise CgroupError("no cgroup v2")
    for mount in MOUNTS:
        place = mount + own.removesuffix(f"/{_LEAF}")
        try:
            there = _read(place, "cgroup.controllers").split()
        except OSError:
            continue
        absent = [name for name in controllers if name not in there]
        if absent:
            raise CgroupError(f"{place} has no controller {', '.join(absent)}")
        for name in (".", "cgroup.procs", "cgroup.subtree_control"):
            if not os.access(os.path.join(place, name), os.W_OK):
                raise CgroupError(f"{place} is not delegated to you")
        if os.geteuid() == 0 and not _is_delegated(place):
            raise CgroupError(f"{place} is systemd's own, without Delegate=yes")
        return place
    raise CgroupError("no cgroup v2 is mounted")


def _is_delegated(place: str) -> bool:
    """Whether a cgroup that root could change is root's to change.

    Where systemd runs, it alone writes in what it has not handed over, and it marks what it has
    (https://systemd.io/CGROUP_DELEGATION/).
    """
    if not os.path.isdir("/run/systemd/system"):
        return True
    for name in ("trusted.delegate", "user.delegate"):
        with contextlib.suppress(OSError):
            if os.getxattr(place, name) == b"1":
                return True
    return False


def _read(place: str, name: str) -> str:
    with open(os.path.join(place, name)) as source:
        return source.read()


def _write(place: str, name: str, text: str) -> None:
    with open(os.path.join(place, name), "w") as out:
        out.write(text)


class Group:
    """One session's cgroup."""

    def __init__(self, path: str) -> None:
        self.path = path

    @classmethod
    def make(cls, values: dict[str, str]) -> Group:
        """Make one with these limits, such as ``memory.max``.  Raises CgroupError, OSError."""
        controllers = tuple(sorted({name.partition(".")[0] for name in values}))
        place = delegated(controllers)
        _hand_down(place, controllers)
        path = os.path.join(place, f"safeclaw-{os.getpid()}-{os.urandom(4).hex()}")
        os.mkdir(path)
        group = cls(path)
        try:
            for name, value in values.items():
                _write(path, name, value)
            with contextlib.suppress(OSError):  # no swap, or none that is accounted for
                if "memory.max" in values:
                    _write(path, "memory.swap.max", "0")
        except BaseException:
            group.remove()
            raise
        return group

    def count(self, file: str, key: str) -> int:
        """Return a number of a flat keyed file, such as ``oom_kill`` of ``memory.events``."""
        for line in _read(self.path, file).splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
        return 0

    def kill(self) -> None:
        """Kill everything in it at once (Linux 5.14)."""
        with contextlib.suppress(OSError):
            _write(self.path, "cgroup.kill", "1")

    def remove(self) -> None:
        """Remove it, when the last of its processes has been taken apart."""
        with contextlib.suppress(OSError):
            events = os.open(os.path.join(self.path, "cgroup.events"), os.O_RDONLY | os.O_CLOEXEC)
            try:
                poller = select.poll()
                poller.register(events, select.POLLPRI)
                while b"populated 1" in os.pread(events, 256, 0):
                    if not poller.poll(_REMOVAL_MS):
                        break
            finally:
                os.close(events)
        with contextlib.suppress(OSError):
            os.rmdir(self.path)


def enter(path: str) -> None:
    """Move this process into a cgroup."""
    _write(path, "cgroup.procs", "0")


def _hand_down(place: str, controllers: tuple[str, ...]) -> None:
    """Give the controllers to the cgroups below ``place``."""
    wanted = " ".join(f"+{name}" for name in controllers)
    if not wanted or set(controllers) <= set(_read(place, "cgroup.subtree_control").split()):
        return
    # Only the root of all has no type, and may have processes beside its children.  Elsewhere
    # the processes go first: the kernel would give ``cpu`` and ``pids`` to the children all the
    # same, and make these parts of a threaded cgroup, which no process can enter (EOPNOTSUPP).
    if os.path.exists(os.path.join(place, "cgroup.type")):
        leaf = os.path.join(place, _LEAF)
        with contextlib.suppress(FileExistsError):
            os.mkdir(leaf)
        while processes := _read(place, "cgroup.procs").split():
            if "0" in processes:
                raise CgroupError(f"{place} holds processes that cannot be seen from here")
            for pid in processes:
                with contextlib.suppress(ProcessLookupError):
                    _write(leaf, "cgroup.procs", pid)
    _write(place, "cgroup.subtree_control", wanted)
