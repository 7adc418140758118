"""Proofs that a tree continues a smaller one (RFC 6962, section 2.1.2).  Pure.

The complete subtrees of the smaller tree, its :class:`Frontier`, and the leaves that
came since are all that a proof is made of: the chain is read from there on, not from
its beginning.
"""

from __future__ import annotations

from collections.abc import Sequence

from safeclaw.daemon.journal.merkle import Frontier, node_hash


class Prover:
    """Takes the leaves after the smaller tree, and makes the proof."""

    def __init__(self, old: Frontier, size: int) -> None:
        """Begin at the smaller tree; ``size``, at least as large, is the larger one's."""
        if size < old.size:
            raise ValueError(f"a tree of {size} leaves does not continue one of {old.size}")
        self._old = old
        self._size = size
        self._at = old.size
        #: What the proof needs of the leaves that came since: ranges, from left to right.
        self._ranges: list[tuple[int, int]] = []
        #: The proof, in its order: a node of the smaller tree, or a range.
        self._plan: list[bytes | tuple[int, int]] = []
        if 0 < old.size < size:
            self._take(0, old.size, size, whole=True)
            self._ranges = sorted(part for part in self._plan if isinstance(part, tuple))
        self._hashes: dict[tuple[int, int], bytes] = {}
        self._growing = Frontier()

    def _take(self, begin: int, old: int, size: int, *, whole: bool) -> None:
        """SUBPROOF(old, D[begin:begin+size], whole) of the RFC."""
        if old == size:
            if not whole:
                self._plan.append(self._node(begin, old))
            return
        half = 1 << (size - 1).bit_length() - 1  # the largest power of two below size
        if old <= half:
            self._take(begin, old, half, whole=whole)
            self._plan.append((begin + half, begin + size))
        else:
            self._take(begin + half, old - half, size - half, whole=False)
            self._plan.append(self._node(begin, half))

    def _node(self, begin: int, width: int) -> bytes:
        """Return the complete subtree of the smaller tree that covers these leaves."""
        place = 0
        for node, bit in zip(self._old.nodes, _widths(self._old.size), strict=True):
            if (place, bit) == (begin, width):
                return node
            place += bit
        # INVARIANT: what a proof takes of the smaller tree is a complete subtree of it.
        raise AssertionError((begin, width, self._old.size))

    def append(self, leaf: bytes) -> None:
        """Take the next leaf."""
        if self._ranges and self._at >= self._ranges[0][0]:
            self._growing.append(leaf)
            if self._at + 1 == self._ranges[0][1]:
                self._hashes[self._ranges.pop(0)] = self._growing.root()
                self._growing = Frontier()
        self._at += 1

    def proof(self) -> list[bytes]:
        """Return the proof, once every leaf was taken."""
        if self._at != self._size:
            raise ValueError(f"{self._at} leaves of {self._size}")
        return [part if isinstance(part, bytes) else self._hashes[part] for part in self._plan]


def _widths(size: int) -> list[int]:
    return [1 << bit for bit in range(size.bit_length() - 1, -1, -1) if size >> bit & 1]


def consistent(old: int, old_root: bytes, size: int, root: bytes, proof: Sequence[bytes]) -> bool:
    """Whether ``proof`` shows that the tree of ``size`` leaves continues that of ``old``.

    The algorithm is RFC 9162's, section 2.1.4.2; the empty tree is continued by any
    tree, with an empty proof.
    """
    if old == size:
        return not proof and old_root == root
    if old == 0:
        return not proof
    if old > size or not proof:
        return False
    steps = list(proof)
    if old & (old - 1) == 0:
        steps.insert(0, old_root)
    first, second = old - 1, size - 1
    while first & 1:
        first >>= 1
        second >>= 1
    left = right = steps[0]
    for step in steps[1:]:
        if second == 0:
            return False
        if first & 1 or first == second:
            left, right = node_hash(step, left), node_hash(step, right)
            while not first & 1 and first:
                first >>= 1
                second >>= 1
        else:
            right = node_hash(right, step)
        first >>= 1
        second >>= 1
    return second == 0 and left == old_root and right == root
