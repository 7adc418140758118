"""Notices that a policy file may have changed (inotify(7), by way of pyinotify).

It watches directories, because editors and packages replace files; what changed, and
whether it is valid, is for the reader to find out.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any

# It is published without types.
pyinotify: Any = importlib.import_module("pyinotify")
# A directory that is not there is no error here, and none to print.
pyinotify.log.setLevel("CRITICAL")
_EVENTS = (
    *("IN_CLOSE_WRITE", "IN_MOVED_TO", "IN_MOVED_FROM"),
    *("IN_CREATE", "IN_DELETE", "IN_DELETE_SELF"),
)
_MASK = sum(int(getattr(pyinotify, name)) for name in _EVENTS)


class PolicyWatch:
    """Watches a set of directories; belongs to the broker's main loop."""

    def __init__(self, directories: set[str]) -> None:
        self._manager = pyinotify.WatchManager()
        self._seen = 0
        self._notifier = pyinotify.Notifier(self._manager, self._note, timeout=0)
        self._watched: dict[str, int] = {}
        self.update(directories)

    def _note(self, _event: object) -> None:
        self._seen += 1

    def fileno(self) -> int:
        """Return the inotify descriptor, for a poller."""
        number: int = self._manager.get_fd()
        return number

    def update(self, directories: set[str]) -> bool:
        """Watch these directories and no others; one that is not there is left out.

        Return whether one was not watched before: what has happened there was not seen.
        """
        before = len(self._watched.keys() & directories)
        for path in self._watched.keys() - directories:
            with contextlib.suppress(pyinotify.WatchManagerError):
                self._manager.rm_watch(self._watched.pop(path))
        for path in directories - self._watched.keys():
            found: dict[str, int] = self._manager.add_watch(path, _MASK, quiet=True)
            if found.get(path, -1) >= 0:
                self._watched[path] = found[path]
        return len(self._watched) > before

    def changed(self) -> bool:
        """Take in what has happened; return whether anything did."""
        self._seen = 0
        self._notifier.read_events()
        self._notifier.process_events()
        return self._seen > 0
