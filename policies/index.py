"""Finding the first rule whose path matches, without trying them all.

A whole subtree is filed under its directory and a literal path under itself:
neither needs matching.  Other globs are filed under something that every path
they match must have: a component, an ending, or at least the directory.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Generic, TypeAlias, TypeVar

from safeclaw.policies.glob import PathGlob, Word

T = TypeVar("T")
_Globs: TypeAlias = list[tuple[int, PathGlob, T]]


def ancestors(path: str, deepest: int) -> Iterator[str]:
    """Yield ``/``, ``/a``, ``/a/b`` … up to ``deepest`` components, ``path`` included."""
    yield "/"
    at = 0
    while deepest > 0 and len(path) > 1:
        at = path.find("/", at + 1)
        if at < 0:
            yield path
            return
        yield path[:at]
        deepest -= 1


class PathIndex(Generic[T]):
    """Values by path glob, found in the order of their ordinals."""

    def __init__(self) -> None:
        self._exact: dict[str, list[tuple[int, T]]] = {}
        self._under: dict[str, list[tuple[int, T]]] = {}
        # Globs by a component, or else by an ending, that every match must
        # have; and the others by their literal directory.
        self._having: dict[str, _Globs[T]] = {}
        self._ending: dict[str, _Globs[T]] = {}
        self._others: dict[str, _Globs[T]] = {}
        self._deepest = 0

    def add(self, ordinal: int, glob: PathGlob, value: T) -> None:
        """File ``value``; ordinals must not decrease from call to call."""
        if not glob.rest:
            self._exact.setdefault(glob.prefix, []).append((ordinal, value))
            return
        if glob.subtree:
            self._under.setdefault(glob.prefix, []).append((ordinal, value))
        elif (name := _literal(glob)) is not None:
            self._having.setdefault(name, []).append((ordinal, glob, value))
            return
        elif (ending := _ending(glob)) is not None:
            self._ending.setdefault(ending, []).append((ordinal, glob, value))
            return
        else:
            self._others.setdefault(glob.prefix, []).append((ordinal, glob, value))
        self._deepest = max(self._deepest, 0 if glob.prefix == "/" else glob.prefix.count("/"))

    def first(self, path: str) -> tuple[int, T] | None:
        """Return the lowest ordinal whose glob matches ``path``, with its value."""
        best: tuple[int, T] | None = None
        exact = self._exact.get(path)
        if exact:
            best = exact[0]
        under = self._under
        for directory in ancestors(path, self._deepest):
            if directory in under and (best is None or under[directory][0][0] < best[0]):
                best = under[directory][0]
        for globs in self._candidates(path):
            for ordinal, glob, value in globs:
                if best is not None and ordinal >= best[0]:
                    break
                if glob.match(path):
                    best = (ordinal, value)
                    break
        return best

    def all(self, path: str) -> list[tuple[int, T]]:
        """Return every value whose glob matches ``path``, lowest ordinal first."""
        found = list(self._exact.get(path, ()))
        for directory in ancestors(path, self._deepest):
            found += self._under.get(directory, ())
        for globs in self._candidates(path):
            found += [(ordinal, value) for ordinal, glob, value in globs if glob.match(path)]
        return sorted(found, key=lambda item: item[0])

    def _candidates(self, path: str) -> list[_Globs[T]]:
        found: list[_Globs[T]] = []
        if self._having:
            having = self._having
            found += [having[name] for name in set(path.split("/")) if name in having]
        if self._ending:
            dot = path.rfind(".")
            if dot >= 0 and path[dot:] in self._ending:
                found.append(self._ending[path[dot:]])
        if self._others:
            others = self._others
            found += [others[at] for at in ancestors(path, self._deepest) if at in others]
        return found


def _literal(glob: PathGlob) -> str | None:
    """Return a literal component that every match has below the prefix."""
    return next((part for part in reversed(glob.rest) if isinstance(part, str)), None)


def _ending(glob: PathGlob) -> str | None:
    """Return the ``.pem`` of a glob that ends in ``*.pem``."""
    last = glob.rest[-1]
    if not isinstance(last, Word) or len(last.pieces) < 2:
        return None
    text = last.pieces[-1].literal or ""
    dot = text.rfind(".")
    return text[dot:] if dot >= 0 else None


class Prefixes:
    """A set of paths that can say what lies below a directory."""

    def __init__(self, paths: dict[str, int | None]) -> None:
        self._paths = sorted(paths)
        self._values = paths

    def below(self, directory: str) -> tuple[str, int | None] | None:
        """Return the first path that lies in ``directory``, or is it, with its value."""
        if directory in self._values:
            return directory, self._values[directory]
        inside = directory.rstrip("/") + "/"
        at = bisect.bisect_left(self._paths, inside)
        if at < len(self._paths) and self._paths[at].startswith(inside):
            return self._paths[at], self._values[self._paths[at]]
        return None


def lies_in(path: str, directories: tuple[str, ...]) -> str | None:
    """Return the first of ``directories`` that ``path`` is or lies in."""
    for directory in directories:
        if path == directory or path.startswith(directory.rstrip("/") + "/"):
            return directory
    return None
