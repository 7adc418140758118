"""Removes a directory that was somebody else's to fill: it may hold, and be, anything by now.

As shutil.rmtree, but that any depth takes few descriptors and no deeper stack, and that
directories nobody may write in (Go's module cache) go, too.  No link is followed, that in the
place of the directory itself included.
"""

from __future__ import annotations

import contextlib
import os
import stat

_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def remove(path: str) -> None:
    """Remove what has the name, and all below it; what cannot be removed stays."""
    with contextlib.suppress(OSError):
        try:
            fd = os.open(path, _PLACE)
        except NotADirectoryError:  # which a link is, too
            os.unlink(path)
            return
        _empty(fd)
        os.rmdir(path)


def _empty(fd: int) -> None:
    """Remove all below an open directory, which is closed."""
    # of each directory on the way down: which it is, and the directories that are left in it
    way = [(os.fstat(fd), _clear(fd))]
    try:
        while True:
            left = way[-1][1]
            if left:
                try:
                    found = os.open(left[-1], _PLACE, dir_fd=fd)
                except OSError:
                    left.pop()
                    continue
                way.append((os.fstat(found), _clear(found)))
                os.close(fd)
                fd = found
            elif len(way) > 1:
                way.pop()
                found = os.open("..", _PLACE, dir_fd=fd)
                os.close(fd)
                fd = found
                # SAFETY: what was moved meanwhile leads up to where nothing is to be removed
                if not os.path.samestat(os.fstat(fd), way[-1][0]):
                    return
                with contextlib.suppress(OSError):
                    os.rmdir(way[-1][1].pop(), dir_fd=fd)
            else:
                return
    finally:
        os.close(fd)


def _clear(fd: int) -> list[str]:
    """Remove what is no directory from an open one; return the names of what is."""
    directories: list[str] = []
    with contextlib.suppress(OSError):
        os.chmod(f"/proc/self/fd/{fd}", stat.S_IRWXU)
        with os.scandir(f"/proc/self/fd/{fd}") as entries:
            found = list(entries)
        for entry in found:
            if entry.is_dir(follow_symlinks=False):
                directories.append(entry.name)
            else:
                with contextlib.suppress(OSError):
                    os.unlink(entry.name, dir_fd=fd)
    return directories
