"""Proofs that a record is in the tree a checkpoint signs (RFC 9162, section 2.1.3).

:class:`Prover` takes the leaves one by one and keeps, besides the tree's right
edge, only the path of each record that a proof was asked for.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from safeclaw.daemon.journal.merkle import node_hash


@dataclass
class _Node:
    """A complete subtree, and the paths so far of the leaves in it that are wanted."""

    size: int
    hash: bytes
    paths: list[list[bytes]] = field(default_factory=lambda: list[list[bytes]]())


class Prover:
    """Builds the proofs for some leaves of one tree, in one pass."""

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        """Begin at ``size`` leaves whose complete subtrees, largest first, are ``nodes``."""
        self._stack: list[_Node] = []
        self._paths: dict[int, list[bytes]] = {}
        self.size = size
        widths = [1 << bit for bit in range(size.bit_length() - 1, -1, -1) if size >> bit & 1]
        for width, node in zip(widths, nodes, strict=True):
            self._stack.append(_Node(width, node))

    def append(self, leaf: bytes, *, wanted: bool = False) -> None:
        """Add the next leaf."""
        node = _Node(1, leaf)
        if wanted:
            path: list[bytes] = []
            self._paths[self.size] = path
            node.paths.append(path)
        self.size += 1
        while self._stack and self._stack[-1].size == node.size:
            node = _joined(self._stack.pop(), node)
        self._stack.append(node)

    def finish(self) -> tuple[bytes, dict[int, list[bytes]]]:
        """Return the root and the proof of each wanted leaf, by index; take no more leaves."""
        if not self._stack:
            raise ValueError("no leaves")
        node = self._stack.pop()
        while self._stack:
            node = _joined(self._stack.pop(), node)
        return node.hash, self._paths


def _joined(left: _Node, right: _Node) -> _Node:
    for path in left.paths:
        path.append(right.hash)
    for path in right.paths:
        path.append(left.hash)
    return _Node(left.size + right.size, node_hash(left.hash, right.hash), left.paths + right.paths)


def included(leaf: bytes, index: int, size: int, proof: Sequence[bytes], root: bytes) -> bool:
    """Whether ``proof`` shows that ``leaf`` stands at ``index`` in the tree of ``root``."""
    if not 0 <= index < size:
        return False
    place, last, node = index, size - 1, leaf
    for step in proof:
        if last == 0:
            return False
        if place & 1 or place == last:
            node = node_hash(step, node)
            while not place & 1 and place:
                place >>= 1
                last >>= 1
        else:
            node = node_hash(node, step)
        place >>= 1
        last >>= 1
    return last == 0 and node == root
