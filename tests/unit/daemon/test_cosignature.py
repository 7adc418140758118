"""What a witness rests on: proofs that a tree continues another, and cosignatures."""

from __future__ import annotations

import base64

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.daemon.journal.consistency import Prover, consistent
from safeclaw.daemon.journal.cosignature import Cosigner, WitnessKey, cosigned_at
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.daemon.journal.note import Checkpoint, NoteError


def tree(size: int) -> Frontier:
    frontier = Frontier()
    for number in range(size):
        frontier.append(leaf_hash(str(number).encode()))
    return frontier


@given(st.integers(0, 130), st.integers(0, 130), st.data())
def test_a_tree_is_shown_to_continue_every_smaller_one_and_no_other(
    old: int, more: int, data: st.DataObject
) -> None:
    size = old + more
    prover = Prover(tree(old), size)
    for number in range(old, size):
        prover.append(leaf_hash(str(number).encode()))
    proof = prover.proof() if old else []
    before, after = tree(old).root(), tree(size).root()
    assert consistent(old, before, size, after, proof)
    if not old:
        return
    assert not consistent(old, bytes(32), size, after, proof)
    assert not consistent(old, before, size, bytes(32), proof)
    assert not consistent(old, before, size, after, [*proof, bytes(32)])
    if proof:
        assert not consistent(old, before, size, after, proof[:-1])
        at = data.draw(st.integers(0, len(proof) - 1))
        wrong = [bytes(32) if place == at else step for place, step in enumerate(proof)]
        assert not consistent(old, before, size, after, wrong)
        assert not consistent(size, after, old, before, proof)


def test_the_proofs_are_those_of_the_rfc() -> None:
    """RFC 6962, section 2.1.3: the tree of seven leaves, continued from 3, 4 and 6."""
    leaf = [leaf_hash(str(number).encode()) for number in range(7)]

    def root(begin: int, end: int) -> bytes:
        frontier = Frontier()
        for one in leaf[begin:end]:
            frontier.append(one)
        return frontier.root()

    expected = {
        3: [leaf[2], leaf[3], root(0, 2), root(4, 7)],
        4: [root(4, 7)],
        6: [root(4, 6), leaf[6], root(0, 4)],
    }
    for old, proof in expected.items():
        prover = Prover(tree(old), 7)
        for number in range(old, 7):
            prover.append(leaf[number])
        assert prover.proof() == proof


def test_a_cosignature_is_of_one_key_one_time_and_one_text() -> None:
    cosigner = Cosigner("witness.example/w1", b"\x01" * 32)
    text = Checkpoint("safeclaw/x", 3, bytes(32)).text()
    note = f"{text}\n" + cosigner.cosign(text, 1_700_000_000)
    assert WitnessKey.parse(cosigner.public.text()) == cosigner.public
    assert cosigned_at(note, cosigner.public) == 1_700_000_000
    other = Cosigner("witness.example/w1", b"\x02" * 32).public
    assert cosigned_at(note, other) is None
    with pytest.raises(NoteError, match="does not hold"):
        cosigned_at(note.replace("\n3\n", "\n4\n"), cosigner.public)
    body = bytearray(base64.b64decode(note.split(" ")[-1]))
    body[11] ^= 1  # of the time
    later = note.rpartition(" ")[0] + " " + base64.b64encode(body).decode() + "\n"
    with pytest.raises(NoteError, match="does not hold"):
        cosigned_at(later, cosigner.public)
