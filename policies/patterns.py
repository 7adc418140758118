"""The patterns of one policy, checked as they are read, and counted.

A policy is read by the broker of a whole host, too: what its braces stand for is bounded for all
its files together, before it is made.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from safeclaw.policies import command, glob

#: How many globs all patterns of a policy, with all that it extends, may stand for.
MAX_GLOBS: Final = 32_768


class Patterns:
    """See the module."""

    def __init__(self) -> None:
        self._left = MAX_GLOBS

    def path(self, text: str) -> None:
        """Check a path glob.  Raises GlobError."""
        if self._left >= 0:
            self._count(glob.path_globs(text, workspace="/w", home="/h"))

    def command(self, text: str) -> None:
        """Check a command pattern.  Raises GlobError."""
        if self._left >= 0:
            self._count(command.command_globs(text, workspace="/w", home="/h"))

    def _count(self, found: Sequence[object]) -> None:
        self._left -= len(found)
        if self._left < 0:  # said once; nothing is looked at any more
            raise glob.GlobError(
                f"with this the braces of the policy stand for more than {MAX_GLOBS} globs"
            )
