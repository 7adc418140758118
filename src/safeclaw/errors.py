"""Every error that safeclaw raises on purpose.

One base class; each error knows what to tell a person.  They are caught once,
in the command line's ``main``, which prints ``diagnostics()`` and exits with
``exit_status``.
"""

from __future__ import annotations

import errno
from typing import Final, Self

#: What helps against a system call's failure on a file, by its errno.
_HINTS: Final = {
    errno.ENOENT: "look for a slip in the path",
    errno.ENOTDIR: "look for a slip in the path: a part of it is no directory",
    errno.EISDIR: "name a file: that is a directory",
    errno.EACCES: "ls -ld says whose it is; run this as its owner, or as root",
    errno.EPERM: "ls -ld says whose it is; run this as its owner, or as root",
    errno.EEXIST: "name another place, or move away what is there",
    errno.ENOSPC: "df says which disk is full; make room, or name another place",
    errno.EDQUOT: "the quota there is used up; make room, or name another place",
    errno.EROFS: "what is mounted there is read-only; name another place",
    errno.EIO: "the disk fails: dmesg says more",
    errno.EBADF: "it was closed before: redirect it to a file",
    errno.EMFILE: "too many files are open: raise ulimit -n",
    errno.EADDRINUSE: "another program listens there: ss -lp names it",
    errno.EADDRNOTAVAIL: "name an address of this host's: ip address lists them",
    errno.ELOOP: "name the place itself, not a symbolic link to it",
}


class SafeclawError(Exception):
    """Base of all errors: a message, an optional hint, and the exit status.

    ``exit_status`` follows env(1): 125 when safeclaw itself failed.
    """

    exit_status = 125
    #: What is hinted at where nothing nearer is.
    usual_hint: str | None = None

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint or self.usual_hint

    @classmethod
    def of(cls, problem: OSError, where: object, *, hint: str | None = None) -> Self:
        """Return the error for a system call that failed on the file or directory ``where``."""
        said = problem.strerror or str(problem)
        return cls(f"{where}: {said}", hint=hint or _HINTS.get(problem.errno or 0))

    def diagnostics(self) -> list[str]:
        """Return the lines to show a person, without a trailing newline."""
        lines = [f"safeclaw: {line}" for line in self.message.splitlines()]
        if self.hint:
            lines.append(f"hint: {self.hint}")
        return lines


class UsageError(SafeclawError):
    """The command line is wrong."""

    exit_status = 2


class PolicyError(SafeclawError):
    """A policy cannot be used; the message names every problem, one a line."""


class WallError(SafeclawError):
    """A layer of the sandbox cannot be put up on this host."""


class CommandError(SafeclawError):
    """The command cannot be run: 127 when not found, 126 when not executable."""

    def __init__(self, message: str, *, status: int, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.exit_status = status


class BrokerError(SafeclawError):
    """The broker cannot be reached, or refuses."""


class ProtocolError(BrokerError):
    """One of the two ends says what the other cannot take."""

    usual_hint = "after an upgrade: systemctl restart safeclawd, then start the agents again"


class BrokerGoneError(BrokerError):
    """The broker does not answer, or has gone: another one may come."""


class JournalError(SafeclawError):
    """The journal cannot be opened, written or read."""


class JournalFaultError(JournalError):
    """A write or sync failed: nothing may be allowed until a new journal is opened."""
