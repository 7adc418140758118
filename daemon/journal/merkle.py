"""The RFC 6962 Merkle tree over records, as pure functions and one small value.

A leaf is ``SHA-256(0x00 || line)``, which is also the link of the chain: one
hash serves both.  :class:`Frontier` is the right edge of the tree: the roots of
the complete subtrees, largest first.  It grows in constant memory (64 hashes at
most) and yields the tree's root at any size.
"""

from __future__ import annotations

from collections.abc import Iterable
from hashlib import sha256

EMPTY_ROOT = sha256(b"").digest()


def leaf_hash(line: bytes) -> bytes:
    """Return the leaf of one record: ``line`` is without its newline."""
    return sha256(b"\x00" + line).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node (RFC 6962, section 2.1)."""
    return sha256(b"\x01" + left + right).digest()


class Frontier:
    """The complete subtrees of a tree of ``size`` leaves, largest first."""

    __slots__ = ("nodes", "size")

    def __init__(self, size: int = 0, nodes: Iterable[bytes] = ()) -> None:
        self.size = size
        self.nodes = list(nodes)
        if len(self.nodes) != size.bit_count():
            raise ValueError(f"{size} leaves have {size.bit_count()} subtrees")

    def append(self, leaf: bytes) -> None:
        """Add one leaf."""
        size = self.size
        while size & 1:
            leaf = sha256(b"\x01" + self.nodes.pop() + leaf).digest()
            size >>= 1
        self.nodes.append(leaf)
        self.size += 1

    def root(self) -> bytes:
        """Return the tree's root (RFC 6962 MTH)."""
        if not self.nodes:
            return EMPTY_ROOT
        root = self.nodes[-1]
        for node in reversed(self.nodes[:-1]):
            root = node_hash(node, root)
        return root
