"""Finding the first rule whose path matches, without trying them all.

Every glob is filed under its literal directory; a path asks only at the
directories it lies in.  A whole subtree and a fully literal path need no
matching; a glob that ends in a literal name is filed under that name too.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterator
from typing import Generic, TypeVar

from safeclaw.policies.glob import PathGlob

T = TypeVar("T")


def ancestors(path: str, deepest: int) -> Iterator[str]:
    """Yield ``/``, ``/a``, ``/a/b`` … up to ``deepest`` components, ``path`` included."""
    yield "/"
    at = 0
    while deepest > 0 and at >= 0 and len(path) > 1:
        at = path.find("/", at + 1)
        yield path if at < 0 else path[:at]
        deepest -= 1


class PathIndex(Generic[T]):
    """Values by path glob, found in the order of their ordinals."""

    def __init__(self) -> None:
        self._exact: dict[str, list[tuple[int, T]]] = {}
        self._under: dict[str, list[tuple[int, T]]] = {}
        self._named: dict[tuple[str, str], list[tuple[int, PathGlob, T]]] = {}
        self._globs: dict[str, list[tuple[int, PathGlob, T]]] = {}
        self._deepest = 0

    def add(self, ordinal: int, glob: PathGlob, value: T) -> None:
        """File ``value``; ordinals must not decrease from call to call."""
        if not glob.rest:
            self._exact.setdefault(glob.prefix, []).append((ordinal, value))
            return
        self._deepest = max(self._deepest, 0 if glob.prefix == "/" else glob.prefix.count("/"))
        if glob.subtree:
            self._under.setdefault(glob.prefix, []).append((ordinal, value))
        elif glob.last is not None:
            key = (glob.prefix, glob.last)
            self._named.setdefault(key, []).append((ordinal, glob, value))
        else:
            self._globs.setdefault(glob.prefix, []).append((ordinal, glob, value))

    def first(self, path: str) -> tuple[int, T] | None:
        """Return the lowest ordinal whose glob matches ``path``, with its value."""
        best: tuple[int, T] | None = None
        exact = self._exact.get(path)
        if exact:
            best = exact[0]
        name = path[path.rfind("/") + 1 :]
        for directory in ancestors(path, self._deepest):
            under = self._under.get(directory)
            if under and (best is None or under[0][0] < best[0]):
                best = under[0]
            for matches in (self._named.get((directory, name)), self._globs.get(directory)):
                for ordinal, glob, value in matches or ():
                    if best is not None and ordinal >= best[0]:
                        break
                    if glob.match(path):
                        best = (ordinal, value)
                        break
        return best

    def all(self, path: str) -> list[tuple[int, T]]:
        """Return every value whose glob matches ``path``, lowest ordinal first."""
        found = list(self._exact.get(path, ()))
        name = path[path.rfind("/") + 1 :]
        for directory in ancestors(path, self._deepest):
            found += self._under.get(directory, ())
            for matches in (self._named.get((directory, name)), self._globs.get(directory)):
                found += [(item[0], item[2]) for item in matches or () if item[1].match(path)]
        return sorted(found, key=lambda item: item[0])


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
