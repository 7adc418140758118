"""O_ASYNC: the kernel signals a file's owner as often as it can be read or written (fcntl(2)).

Of a terminal the owner is, unless somebody says another, the process group before it: the one that
the agent is started in, with the supervisor and whatever else a script has started there.  No
scope and no namespace is asked for that, so it is refused of terminals, which are character
devices.  Of anything else nobody is the owner until the agent says so, and a group is refused by
the first program.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import stat
import struct
import termios
from collections.abc import Generator

from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import error

_INT = struct.Struct("=i")


@contextlib.contextmanager
def _own(note: Notification) -> Generator[int]:
    """Have a duplicate of the caller's descriptor: it is one open file, so what is set is set."""
    fd = note.caller.duplicate(note.int_arg(0))
    try:
        yield fd
    finally:
        os.close(fd)


def _require_owned(fd: int) -> None:
    if stat.S_ISCHR(os.fstat(fd).st_mode):
        raise error(errno.EPERM)


def _set_flags(note: Notification) -> int:
    """F_SETFL with O_ASYNC."""
    flags = note.args[2] & 0x7FFFFFFF
    with _own(note) as fd:
        _require_owned(fd)
        # SAFETY: it is for the file's owner alone (open(2)), and the supervisor may be root
        if flags & ~fcntl.fcntl(fd, fcntl.F_GETFL) & os.O_NOATIME:
            raise error(errno.EPERM)
        return fcntl.fcntl(fd, fcntl.F_SETFL, flags)


def _request(note: Notification) -> int:
    """FIOASYNC, which the kernel has for all files (fs/ioctl.c), or what has its number."""
    if note.args[1] & 0xFFFFFFFF != termios.FIOASYNC:
        raise error(errno.ENOTTY)
    value = read_exact(note.pid, note.args[2], _INT.size)
    with _own(note) as fd:
        if any(value):
            _require_owned(fd)
        fcntl.ioctl(fd, termios.FIOASYNC, value)
    return 0


def handlers() -> dict[str, Handler]:
    """Return the handlers of what sets O_ASYNC."""
    return {"fcntl": _set_flags, "ioctl": _request}
