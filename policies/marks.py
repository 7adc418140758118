"""What a policy marks as private (``pseudonymise``): which words of a record name it.

A word is private when it is, or contains, a path that a glob of the policy matches;
relative ones stand in the workspace.  A target is private as a whole when the policy
names its action.

Pure.  What a name cannot show (a path spelled relative to another directory, or put
together by a shell) is not seen: docs/policy-reference.md says so.
"""

from __future__ import annotations

import posixpath
import re

from safeclaw.policies.buckets import covers
from safeclaw.policies.document import Pseudonymise
from safeclaw.policies.glob import path_globs

#: What may stand around a path in an argument: shell syntax, ``--option=``, URLs and lists.
_BETWEEN = re.compile(r"""[\s'"`=:;,|&()<>\[\]{}]+""")


class Marks:
    """The marks of one policy, for one workspace and home."""

    def __init__(self, pseudonymise: Pseudonymise, workspace: str, home: str) -> None:
        self._actions = pseudonymise.actions
        self._workspace = workspace
        self._home = home
        self._globs = [
            glob
            for text in pseudonymise.paths
            for glob in path_globs(text, workspace=workspace, home=home)
        ]

    def action(self, action: str) -> bool:
        """Whether every target of this action is private."""
        return any(covers(pattern, action) for pattern in self._actions)

    def word(self, text: str) -> bool:
        """Whether a word names something private."""
        if not self._globs:
            return False
        return self._path(text) or any(
            self._path(piece) for piece in _BETWEEN.split(text) if piece and piece != text
        )

    def pieces(self, text: str) -> list[str]:
        """Return the parts of a sentence that name something private."""
        return [piece for piece in _BETWEEN.split(text) if "/" in piece and self._path(piece)]

    def _path(self, text: str) -> bool:
        if text == "~" or text.startswith("~/"):
            text = self._home + text[1:]
        if "\0" in text:
            return False
        path = posixpath.normpath(posixpath.join(self._workspace, text))
        return any(glob.match(path) for glob in self._globs)
