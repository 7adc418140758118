"""Notices that a policy file may have changed (inotify(7), by way of pyinotify).

It watches directories, because editors and packages replace files; what changed, and
whether it is valid, is for the reader to find out.  A directory may itself be replaced, or
come later, where the one it lies in is there.
"""

from __future__ import annotations

import contextlib
import importlib
import os
from typing import Any

# It is published without types.
pyinotify: Any = importlib.import_module("pyinotify")
# A directory that is not there is no error here, and none to print.
pyinotify.log.setLevel("CRITICAL")
_EVENTS = (
    *("IN_CLOSE_WRITE", "IN_MOVED_TO", "IN_MOVED_FROM"),
    *("IN_CREATE", "IN_DELETE", "IN_DELETE_SELF", "IN_MOVE_SELF"),
)
_MASK = sum(int(getattr(pyinotify, name)) for name in _EVENTS)


class PolicyWatch:
    """Watches a set of directories; belongs to the broker's main loop."""

    def __init__(self, directories: set[str]) -> None:
        self._manager = pyinotify.WatchManager()
        self._seen = 0
        self._notifier = pyinotify.Notifier(self._manager, self._note, timeout=0)
        self._wanted: set[str] = set()
        self._above: set[int] = set()
        #: What is watched, and which directory that was: (watch, device, inode).
        self._watched: dict[str, tuple[int, int, int]] = {}
        self.update(directories)

    def _note(self, event: Any) -> None:
        # What else happens where a directory is missed may be much, and changes nothing.
        if getattr(event, "wd", None) not in self._above or event.pathname in self._wanted:
            self._seen += 1

    def fileno(self) -> int:
        """Return the inotify descriptor, for a poller."""
        number: int = self._manager.get_fd()
        return number

    def update(self, directories: set[str]) -> bool:
        """Watch these directories and no others; of one that is not there, where it would be.

        Return whether one was not watched before: what has happened there was not seen.
        """
        self._wanted = directories
        return self._renew()

    def _renew(self) -> bool:
        """Watch what is wanted as it is by now; return whether anything of it is new."""
        fresh = False
        missed: set[str] = set()
        for path in self._wanted:
            before = self._watched.get(path)
            if not self._watch(path):
                missed.add(os.path.dirname(path))
                self._watch(os.path.dirname(path))
                self._watch(path)  # it may have come in between
            fresh |= path in self._watched and self._watched[path] != before
        for path in self._watched.keys() - self._wanted - missed:
            self._forget(path)
        above = (missed - self._wanted) & self._watched.keys()
        self._above = {self._watched[path][0] for path in above}
        return fresh

    def _watch(self, path: str) -> bool:
        """Watch the directory that has this name by now; False when there is none."""
        try:
            found = os.stat(path)
        except OSError:
            self._forget(path)
            return False
        number, *known = self._watched.get(path, (-1, 0, 0))
        # A new directory may have the number of the one that is gone, with its watch.
        if known == [found.st_dev, found.st_ino] and self._manager.get_path(number) == path:
            return True
        self._forget(path)
        watches: dict[str, int] = self._manager.add_watch(path, _MASK, quiet=True)
        number = watches.get(path, -1)
        if number < 0:
            return False
        self._watched[path] = (number, found.st_dev, found.st_ino)
        return True

    def _forget(self, path: str) -> None:
        if path in self._watched:
            with contextlib.suppress(pyinotify.WatchManagerError):
                self._manager.rm_watch(self._watched.pop(path)[0])

    def changed(self) -> bool:
        """Take in what has happened; return whether anything did."""
        self._seen = 0
        self._notifier.read_events()
        self._notifier.process_events()
        if self._seen:
            self._renew()
        return self._seen > 0
