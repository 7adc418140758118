"""journald's copy of the chain, held against it record by record.  Pure.

A copy may lack records: journald forgets what is old, and loses what it was not there
for or was told to limit.  It must not hold another record than the chain does.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final

#: So many stretches of lost records are named, the first ones; of all, their number.
_NAMED: Final = 8


class Copied:
    """What journald said, taken in step with the chain: (sequence, leaf in hex), in order."""

    def __init__(self, told: Iterable[tuple[int, str]]) -> None:
        self._told = iter(told)
        self._next = next(self._told, None)
        #: How many records it has as they are.
        self.matched = 0
        self._first = 0
        self._lost = 0
        self._stretches: list[tuple[int, int]] = []
        #: The records that it lacks since the last one that it has: the first, and how many.
        self._missing = (0, 0)

    @property
    def ahead(self) -> int | None:
        """The number of a record that it has and that was not held against it yet."""
        return None if self._next is None else self._next[0]

    def agrees(self, seq: int, leaf: str) -> bool:
        """Take the chain's next record; False when journald has another of that number."""
        has = False
        while self._next is not None and self._next[0] <= seq:
            # Lower ones came twice, after a crash of the forwarder, or were pruned here.
            if self._next[0] == seq:
                if self._next[1] != leaf:
                    return False
                has = True
            self._next = next(self._told, None)
        first, count = self._missing
        if not has:
            self._missing = (first if count else seq, count + 1)
            return True
        if self.matched == 0:
            self._first = seq
        elif count:
            self._lost += count
            if len(self._stretches) < _NAMED:
                self._stretches.append(self._missing)
        self._missing = (0, 0)
        self.matched += 1
        return True

    def notes(self, begin: int) -> list[str]:
        """Say in words what it lacks of a chain whose first record here is ``begin``."""
        if self.matched == 0:
            return ["journald has no record of this chain"]
        notes: list[str] = []
        if self._first > begin:
            notes.append(f"journald has nothing before record {self._first}, or forgot it")
        if self._lost:
            named = ", ".join(_stretch(*one) for one in self._stretches)
            rest = self._lost - sum(count for _, count in self._stretches)
            notes.append(
                f"journald lost {self._lost} records between those that it has: {named}"
                + (f", and {rest} further on" if rest else "")
            )
        first, count = self._missing
        if count:
            after = f"journald has nothing after record {first - 1}"
            notes.append(f"{after}: {count} records are not there yet, or were lost")
        return notes


def _stretch(first: int, count: int) -> str:
    return str(first) if count == 1 else f"{first} to {first + count - 1}"
