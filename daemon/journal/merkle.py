"""The RFC 6962 Merkle tree over records, as pure functions and one small value.

A leaf is ``SHA-256(0x00 || line)``, which is also the link of the chain: one
hash serves both.  :class:`Frontier` is the right edge of the tree: the roots of
the complete subtrees, largest first.  It grows in constant memory (64 hashes at
most) and yields the tree's root at any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256
from typing import Final

EMPTY_ROOT = sha256(b"").digest()

#: How many leaves a frontier keeps before it merges them.
_MANY: Final = 1024


def leaf_hash(line: bytes) -> bytes:
    """Return the leaf of one record: ``line`` is without its newline."""
    return sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962, section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The complete subtrees of a tree of ``size`` leaves, largest first.

    Leaves are merged when somebody looks, or many have come: in a loop over many, a hash
    costs half of what it costs alone.
    """

    __slots__ = ("_leaves", "_nodes", "_settled")

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self._settled = size  # what ``_nodes`` are of
        self._nodes = list(nodes)
        self._leaves: list[bytes] = []  # after those
        if len(self._nodes) != size.bit_count():
            raise ValueError(f"{size} leaves have {size.bit_count()} subtrees")

    @property
    def size(self) -> int:
        """How many leaves the tree has."""
        return self._settled + len(self._leaves)

    @property
    def nodes(self) -> list[bytes]:
        """The roots of the complete subtrees, largest first."""
        self._settle()
        return self._nodes

    def append(self, leaf: bytes) -> None:
        """Add one leaf."""
        leaves = self._leaves
        leaves.append(leaf)
        if len(leaves) >= _MANY:
            self._settle()

    def root(self) -> bytes:
        """Return the tree's root (RFC 6962 MTH)."""
        nodes = self.nodes
        if not nodes:
            return EMPTY_ROOT
        root = nodes[-1]
        for node in reversed(nodes[:-1]):
            root = node_hash(node, root)
        return root

    def _settle(self) -> None:
        """Merge the leaves into the subtrees, one level of the tree after the other."""
        if not self._leaves:
            return
        level, place = self._leaves, self._settled  # of the level's first node, in its level
        self._settled, self._leaves = self.size, []
        right: list[bytes] = []  # what has no sibling yet, smallest first
        while level:
            if place & 1:
                level.insert(0, self._nodes.pop())
            if len(level) & 1:
                right.append(level.pop())
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [sha256(b"\x01" + a + b).digest() for a, b in pairs]
            place >>= 1
        self._nodes += reversed(right)
