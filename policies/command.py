"""Command patterns: shell-quoted tokens, each a glob, against the real argv.

The first token names the program: without a slash by file name, with one by
path (relative ones stand in the workspace).  The others are matched to the
arguments one by one; a last ``*`` takes all that remain, even none.
"""

from __future__ import annotations

import itertools
import shlex

import msgspec

from safeclaw.policies import glob
from safeclaw.policies.glob import GlobError, PathGlob, Word


class Arguments(msgspec.Struct, frozen=True):
    """What the arguments after the program must look like."""

    words: tuple[Word, ...]
    open_ended: bool

    def match(self, arguments: tuple[str, ...]) -> bool:
        """Return whether ``arguments`` (argv without its first word) match."""
        if len(arguments) < len(self.words):
            return False
        if len(arguments) > len(self.words) and not self.open_ended:
            return False
        return all(
            word.any or word.match(text) for word, text in zip(self.words, arguments, strict=False)
        )


class CommandGlob(msgspec.Struct, frozen=True):
    """A compiled command pattern: either ``name`` or ``path`` is set."""

    name: Word | None
    path: PathGlob | None
    arguments: Arguments


def tokens(text: str) -> list[str]:
    """Split a command pattern as a shell would.  Raises GlobError."""
    lexer = shlex.shlex(text, posix=True, punctuation_chars=False)
    lexer.whitespace_split = True
    lexer.commenters = ""
    # A backslash belongs to the glob, so that \\* can mean the star itself.
    lexer.escape = ""
    try:
        found = list(lexer)
    except ValueError as error:
        raise GlobError(f"the quoting is wrong: {str(error).lower()}") from None
    if not found or not found[0]:
        raise GlobError('the command is empty; "*" means any program')
    return found


def command_globs(text: str, *, workspace: str, home: str) -> list[CommandGlob]:
    """Compile a command pattern.  Raises GlobError.

    A pattern that is only ``*`` means any program with any arguments.
    """
    first, *others = tokens(text)
    open_ended = bool(others) and others[-1] == "*"
    if open_ended:
        others = others[:-1]
    if text.strip() == "*":
        open_ended = True
    choices: list[list[Word]] = []
    count = 1
    for token in others:
        choices.append([glob.word(one) for one in glob.braces(token)])
        count *= len(choices[-1])
        if count > glob.MAX_ALTERNATIVES:
            raise GlobError(f"the braces stand for more than {glob.MAX_ALTERNATIVES} globs")
    arguments = [Arguments(words, open_ended) for words in itertools.product(*choices)]
    programs: list[tuple[Word | None, PathGlob | None]] = []
    for one in glob.braces(first):
        if "/" in one or one.startswith("~"):
            paths = glob.path_globs(one, workspace=workspace, home=home)
            programs.extend((None, path) for path in paths)
        else:
            programs.append((glob.word(one), None))
    return [CommandGlob(name, path, args) for name, path in programs for args in arguments]


def bare_name(text: str) -> str | None:
    """Return the literal program name a pattern begins with, if it is one."""
    first = tokens(text)[0]
    return None if "/" in first or glob.is_glob(first) or "{" in first else first
