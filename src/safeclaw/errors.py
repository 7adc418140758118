"""Every error that safeclaw raises on purpose.

One base class; each error knows what to tell a person.  They are caught once,
in the command line's ``main``, which prints ``diagnostics()`` and exits with
``exit_status``.
"""

from __future__ import annotations


class SafeclawError(Exception):
    """Base of all errors: a message, an optional hint, and the exit status.

    ``exit_status`` follows env(1): 125 when safeclaw itself failed.
    """

    exit_status = 125

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

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


class BrokerGoneError(BrokerError):
    """The broker does not answer, or has gone: another one may come."""


class JournalError(SafeclawError):
    """The journal cannot be opened, written or read."""


class JournalFaultError(JournalError):
    """A write or sync failed: nothing may be allowed until a new journal is opened."""
