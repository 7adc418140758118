"""The pure parts of a journal: the encoding of a record, the tree, the note."""

from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from safeclaw.daemon.journal import RecordType
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash, node_hash
from safeclaw.daemon.journal.note import NoteError, PublicKey, SigningKey, open_note
from safeclaw.daemon.journal.record import Record, RecordError, decode, encode

text = st.text(max_size=30)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | text,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.text(st.characters(max_codepoint=126), max_size=5), inner, max_size=3)
    ),
    max_leaves=10,
)


@given(
    detail=st.dictionaries(st.text(st.characters(max_codepoint=126), max_size=9), plain, max_size=4)
)
@settings(deadline=None)
def test_a_record_has_one_encoding_and_survives_it(detail: dict[str, object]) -> None:
    record = Record(
        boot_id="b",
        boottime_us=1,
        chain="c",
        detail=detail,
        prev="0" * 64,
        seq=0,
        ts="t",
        type=RecordType.FAULT,
        v=1,
    )
    line = encode(record)
    assert b"\n" not in line
    assert encode(decode(line)) == line
    assert json.loads(line)["detail"] == detail
    # The same JSON, written by anyone else, is not a record.
    other = json.dumps(json.loads(line)).encode()
    with pytest.raises(RecordError):
        decode(other)


@given(st.lists(st.binary(max_size=4), max_size=40))
def test_the_frontier_has_the_root_that_rfc_6962_defines(lines: list[bytes]) -> None:
    def root(leaves: list[bytes]) -> bytes:
        if len(leaves) == 1:
            return leaves[0]
        split = 1 << (len(leaves) - 1).bit_length() - 1
        return node_hash(root(leaves[:split]), root(leaves[split:]))

    frontier = Frontier()
    leaves = [leaf_hash(line) for line in lines]
    for leaf in leaves:
        frontier.append(leaf)
    if leaves:
        assert frontier.root() == root(leaves)


@given(st.binary(min_size=32, max_size=32), st.text("ab \n", max_size=9))
@settings(deadline=None)
def test_a_note_opens_with_its_key_and_no_other(seed: bytes, body: str) -> None:
    key = SigningKey("name", seed)
    text = body.replace("\n\n", "\n") + "x\n"
    assert PublicKey.parse(key.public.text()) == key.public
    if "\n\n" not in text:
        note = key.sign(text)
        assert open_note(note, key.public) == text
        other = SigningKey("name", bytes(32) if seed != bytes(32) else b"\x01" * 32)
        with pytest.raises(NoteError):
            open_note(note, other.public)
