"""What a view would hide, refused by name where the agent shares the host's namespaces.

With ``--isolation landlock`` names are walked in the host's own root.  What full
isolation makes private or leaves out is then held back here, before any policy is
asked: other processes' entries in /proc, devices, and everything in /tmp,
/var/tmp and /dev/shm but the session's own directories, which live as long as it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import tempfile

import msgspec

from safeclaw.sandbox import clearing, tree
from safeclaw.sandbox.kernels import is_device, is_proc

#: Directories that full isolation gives each session anew.
PRIVATE = ("/tmp", "/var/tmp", "/dev/shm")
_SHM = "/dev/shm/"
_PROCESS = re.compile(r"/proc/(\d+)(?:/|\Z)")


class Own(msgspec.Struct, frozen=True):
    """The directories that are made for one session: for temporary files, and shared memory."""

    temporary: str
    shared: str = ""

    @classmethod
    def make(cls) -> Own:
        """Make them, readable by nobody else."""
        persons = os.umask(0o077)  # which may keep even their owner out of directories
        try:
            temporary, shared = tempfile.mkdtemp(prefix="safeclaw-", dir="/tmp"), ""
            with contextlib.suppress(OSError):  # not every container has a /dev/shm
                shared = tempfile.mkdtemp(prefix="safeclaw-", dir=_SHM.rstrip("/"))
        finally:
            os.umask(persons)
        return cls(temporary, shared)

    def remove(self) -> None:
        """Remove them with all that is in them, whatever the agent has put there or in their place.

        To be called when nothing of the agent runs any more.
        """
        for path in (self.temporary, self.shared):
            if path:
                clearing.remove(path)


class Confinement:
    """Says of a file that was found whether it exists for the agent; ENOENT where not."""

    def __init__(self, keeper: int, own: Own, view: tuple[str, ...]) -> None:
        """Hold back for the session of ``keeper``; what ``view`` names by itself is shown."""
        self._keeper = keeper
        self._shm = f"{own.shared}/" if own.shared else ""
        # SAFETY: /tmp may be a link, and a canonical path lies where that leads
        self._private = (*PRIVATE, *(os.path.realpath(path) for path in PRIVATE))
        places = [os.path.realpath(path) for path in view]
        named = [path for path in places if self._hides(path) and path not in self._private]
        owned = [os.path.realpath(path) for path in (own.temporary, own.shared) if path]
        self._shown = tuple({*owned, *named})

    def rewrite(self, path: str) -> str:
        """Return where a name in /dev/shm leads: libc puts semaphores and memory there."""
        if self._shm and path.startswith(_SHM) and not path.startswith(self._shm):
            return self._shm + path[len(_SHM) :].lstrip("/")
        return path

    def shows(self, path: str) -> bool:
        """Whether a canonical path is not one of those that only a view could keep private."""
        return not self._hides(path) or any(_within(path, place) for place in self._shown)

    def _hides(self, path: str) -> bool:
        return any(_within(path, root) for root in self._private)

    def require(self, fd: int, path: str, *, held: bool = False) -> None:
        """Raise ENOENT unless what was found may exist; ``held``: the agent has it open already."""
        if not self.shows(path) or not self._shows_process(fd, path):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))
        if not held and is_device(fd):
            raise OSError(errno.ENOENT, os.strerror(errno.ENOENT))

    def _shows_process(self, fd: int, path: str) -> bool:
        if path == "/proc" or path.startswith("/proc/"):
            found = _PROCESS.match(path)
            # SAFETY: the descriptor is of this process and no later one (proc(5)), so that a pid
            # which is used again is refused here or leads nowhere.
            return found is None or tree.descends(self._keeper, int(found[1]))
        return not is_proc(fd)


def _within(path: str, root: str) -> bool:
    return path == root or path.startswith(root + "/")
