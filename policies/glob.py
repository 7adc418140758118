"""Globs, matched without backtracking blow-ups.

A *word* glob matches one path component or one argument: ``*``, ``?`` and
``[…]``.  Its stars cut it into pieces of fixed length, and each piece is taken
at the leftmost place it fits: for a glob that is exact, and no choice is ever
revisited.  A *path* glob is a list of word globs and ``**``; every word takes
exactly one component, so the same argument holds one level up and only the
last ``**`` is ever moved on.

Braces are expanded first, to a bounded number of globs.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence

import msgspec

MAX_ALTERNATIVES = 256
_WILD = frozenset("*?[")
_SET = re.compile(r"\[([!^]?)(\]?(?:\\.|[^\]\\])*)\]", re.DOTALL)


class GlobError(Exception):
    """A glob is written wrongly; the message says how."""


class CharSet(msgspec.Struct, frozen=True):
    """One character out of, or not out of, some ranges (both ends included)."""

    negated: bool
    ranges: tuple[tuple[str, str], ...]

    def has(self, char: str) -> bool:
        """Return whether the set takes ``char``."""
        return any(low <= char <= high for low, high in self.ranges) != self.negated


Atom = str | CharSet | None
"""One character of a piece: itself, one of a set, or (None) any."""


class Piece(msgspec.Struct, frozen=True):
    """A run of characters without a star, hence of fixed length."""

    atoms: tuple[Atom, ...]
    literal: str | None

    def fits(self, text: str, at: int) -> bool:
        """Return whether the piece matches ``text`` at ``at``."""
        if self.literal is not None:
            return text.startswith(self.literal, at)
        if at + len(self.atoms) > len(text):
            return False
        for offset, atom in enumerate(self.atoms):
            char = text[at + offset]
            if atom is None or (atom == char if isinstance(atom, str) else atom.has(char)):
                continue
            return False
        return True

    def find(self, text: str, start: int, end: int) -> int:
        """Return the leftmost place within ``text[start:end]``, or -1."""
        if self.literal is not None:
            return text.find(self.literal, start, end)
        for at in range(start, end - len(self.atoms) + 1):
            if self.fits(text, at):
                return at
        return -1


class Word(msgspec.Struct, frozen=True):
    """A glob for one component: its pieces, with a star between each two."""

    pieces: tuple[Piece, ...]

    @property
    def literal(self) -> str | None:
        """The only text that matches, when there is but one."""
        return self.pieces[0].literal if len(self.pieces) == 1 else None

    @property
    def any(self) -> bool:
        """Whether the glob is a plain ``*``."""
        return len(self.pieces) > 1 and not any(piece.atoms for piece in self.pieces)

    def match(self, text: str) -> bool:
        """Return whether the whole of ``text`` matches."""
        first, last = self.pieces[0], self.pieces[-1]
        if len(self.pieces) == 1:
            return len(text) == len(first.atoms) and first.fits(text, 0)
        at, end = len(first.atoms), len(text) - len(last.atoms)
        if end < at or not first.fits(text, 0) or not last.fits(text, end):
            return False
        for piece in self.pieces[1:-1]:
            found = piece.find(text, at, end)
            if found < 0:
                return False
            at = found + len(piece.atoms)
        return True


def _piece(atoms: list[Atom]) -> Piece:
    text = [atom for atom in atoms if isinstance(atom, str)]
    return Piece(tuple(atoms), "".join(text) if len(text) == len(atoms) else None)


def _char_set(found: re.Match[str]) -> CharSet:
    body = re.findall(r"\\.|.", found[2], re.DOTALL)
    chars = [item[-1] for item in body]
    ranges: list[tuple[str, str]] = []
    at = 0
    while at < len(chars):
        if at + 2 < len(chars) and body[at + 1] == "-":
            low, high = chars[at], chars[at + 2]
            if low > high:
                raise GlobError(f"the range {low}-{high} runs backwards")
            ranges.append((low, high))
            at += 3
        else:
            ranges.append((chars[at], chars[at]))
            at += 1
    return CharSet(bool(found[1]), tuple(ranges))


def word(text: str) -> Word:
    """Compile a glob for one component or argument (braces already expanded)."""
    pieces: list[Piece] = []
    atoms: list[Atom] = []
    at = 0
    while at < len(text):
        char = text[at]
        if char == "*":
            if not (pieces and not atoms and text[at - 1] == "*"):
                pieces.append(_piece(atoms))
                atoms = []
        elif char == "?":
            atoms.append(None)
        elif char == "[":
            found = _SET.match(text, at)
            if found is None or not found[2]:
                raise GlobError("'[' is never closed; write \\[ for the character itself")
            atoms.append(_char_set(found))
            at = found.end()
            continue
        elif char == "\\":
            if at + 1 == len(text):
                raise GlobError("a backslash ends the glob; write \\\\ for the character itself")
            at += 1
            atoms.append(text[at])
        else:
            atoms.append(char)
        at += 1
    pieces.append(_piece(atoms))
    return Word(tuple(pieces))


def braces(text: str) -> list[str]:
    """Expand ``{a,b}``, nested ones too, into globs without braces."""
    done: list[str] = []
    todo = [text]
    while todo:
        item = todo.pop()
        parts = _split_brace(item)
        if parts is None:
            done.append(item)
            continue
        before, choices, after = parts
        # counted before they are made: each is as long as the rest of the glob
        if len(done) + len(todo) + len(choices) > MAX_ALTERNATIVES:
            raise GlobError(f"the braces stand for more than {MAX_ALTERNATIVES} globs")
        todo.extend(f"{before}{choice}{after}" for choice in reversed(choices))
    return done


def _split_brace(text: str) -> tuple[str, list[str], str] | None:
    """Return what is before, in and after the first brace; None without one."""
    depth = at = opened = begun = 0
    choices: list[str] = []
    closed = True
    while at < len(text):
        char = text[at]
        if char == "\\":
            at += 1
        elif char == "[" and closed:
            found = _SET.match(text, at)
            # what closes no set here closes none further on, so that nothing is looked for twice
            closed = found is not None
            at = at if found is None else found.end() - 1
        elif char == "{":
            depth += 1
            if depth == 1:
                opened, begun = at, at + 1
        elif depth and char == "," and depth == 1:
            choices.append(text[begun:at])
            begun = at + 1
        elif char == "}" and depth:
            depth -= 1
            if not depth:
                choices.append(text[begun:at])
                if len(choices) == 1:
                    raise GlobError("braces with one choice only; write \\{ for the character")
                return text[:opened], choices, text[at + 1 :]
        elif char == "}":
            raise GlobError("'}' without '{'; write \\} for the character itself")
        at += 1
    if depth:
        raise GlobError("'{' is never closed; write \\{ for the character itself")
    return None


Part = str | Word | None
"""One part of a path glob: a literal component, a word glob, or (None) ``**``."""


class PathGlob(msgspec.Struct, frozen=True):
    """A glob for absolute paths.

    ``prefix`` is the literal directory that every match lies in or is; ``rest``
    the parts after it, beginning with the first that is not literal.
    """

    prefix: str
    rest: tuple[Part, ...]

    @property
    def subtree(self) -> bool:
        """Whether the glob is ``prefix/**``: the directory and all below it."""
        return self.rest == (None,)

    def match(self, path: str) -> bool:
        """Return whether the canonical absolute ``path`` matches."""
        base = "" if self.prefix == "/" else self.prefix
        if not path.startswith(base):
            return False
        below = path[len(base) :]
        if below in ("", "/"):
            return _match_parts(self.rest, ())
        return below[0] == "/" and _match_parts(self.rest, below[1:].split("/"))


def led(found: PathGlob, leads: Mapping[str, str]) -> tuple[PathGlob, ...]:
    """Return a glob, and the one for where its literal beginning leads (``Context.leads``)."""
    real = leads.get(found.prefix)
    return (found,) if real is None else (found, PathGlob(real, found.rest))


def _match_parts(parts: Sequence[Part], names: Sequence[str]) -> bool:
    part = name = 0
    star = mark = -1
    while name < len(names):
        if part < len(parts) and parts[part] is None:
            star, mark = part, name
            part += 1
        elif part < len(parts) and match_part(parts[part], names[name]):
            part += 1
            name += 1
        elif star >= 0:
            mark += 1
            part, name = star + 1, mark
        else:
            return False
    return all(left is None for left in parts[part:])


def match_part(part: Part, name: str) -> bool:
    """Return whether a part that takes one component takes ``name``."""
    if isinstance(part, str):
        return part == name
    return part is not None and part.match(name)


@functools.lru_cache(maxsize=1024)  # the view, the rights and the rules each ask for the same
def path_globs(text: str, *, workspace: str, home: str) -> tuple[PathGlob, ...]:
    """Compile a path glob; a relative one stands in ``workspace``, ``~`` is ``home``.

    ``workspace`` and ``home`` are taken literally, whatever they contain.
    Raises GlobError.
    """
    return tuple(_path_glob(one, workspace, home) for one in braces(text))


def _path_glob(text: str, workspace: str, home: str) -> PathGlob:
    if not text:
        raise GlobError("the path is empty; '.' is the workspace itself")
    if "\0" in text:
        raise GlobError("a path cannot contain a NUL")
    if text == "~" or text.startswith("~/"):
        base, text = home, text[1:]
    elif text.startswith("~"):
        raise GlobError("only '~/' (the agent user's home) is known; write \\~ for the character")
    elif text.startswith("/"):
        base = "/"
    else:
        base = workspace
    literal = [name for name in base.split("/") if name]
    rest: list[Part] = []
    for name in text.split("/"):
        if name in ("", "."):
            continue
        if name == "..":
            raise GlobError("'..' cannot match: paths are canonical; write where it leads")
        part = _part(name)
        if isinstance(part, str) and not rest:
            literal.append(part)
        elif not (part is None and rest and rest[-1] is None):
            rest.append(part)
    return PathGlob("/" + "/".join(literal), tuple(rest))


def _part(name: str) -> Part:
    if name == "**":
        return None
    if "**" in name.replace("\\*", ""):
        raise GlobError("'**' must stand alone between slashes: write **/*.pem, not **.pem")
    compiled = word(name)
    return compiled if compiled.literal is None else compiled.literal


def is_glob(text: str) -> bool:
    """Return whether ``text`` contains a wildcard."""
    return any(char in _WILD for char in text)
