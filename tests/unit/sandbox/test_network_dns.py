"""DNS messages: what is understood, what is passed on, and what is refused."""

from __future__ import annotations

import struct

from hypothesis import given
from hypothesis import strategies as st

from safeclaw.sandbox import dns


def _name(text: str) -> bytes:
    return b"".join(bytes([len(x)]) + x.encode() for x in text.split(".")) + b"\0"


def _query(name: str, kind: int = dns.A, extra: bytes = b"", count: int = 0) -> bytes:
    header = struct.pack(">6H", 7, 0x0100, 1, 0, 0, count)
    return header + _name(name) + struct.pack(">HH", kind, 1) + extra


def _asked(name: str) -> dns.Question:
    asked = dns.question(_query(name))
    assert asked is not None
    return asked


def _record(owner: bytes, kind: int, data: bytes, ttl: int = 300) -> bytes:
    return owner + struct.pack(">HHIH", kind, 1, ttl, len(data)) + data


def _reply(asked: dns.Question, ident: int, *records: bytes) -> bytes:
    header = struct.pack(">6H", ident, 0x8180, 1, len(records), 0, 0)
    return header + asked.raw + b"".join(records)


def test_a_name_is_read_in_lower_case_and_a_dot_in_a_label_is_no_separator() -> None:
    assert _asked("API.Example.COM").name == "api.example.com"
    packet = struct.pack(">6H", 7, 0, 1, 0, 0, 0) + b"\x03a.b\x03com\0" + struct.pack(">HH", 1, 1)
    asked = dns.question(packet)
    assert asked is not None
    assert asked.name == "a\\046b.com"


def test_nothing_of_the_askers_but_the_question_is_passed_on() -> None:
    option = b"\0" + struct.pack(">HHIH", dns.OPT, 4096, 0, 10) + struct.pack(">HH", 65001, 6)
    asked = dns.question(_query("SeCrEt.example.com", extra=option + b"hidden", count=1))
    assert asked is not None
    sent = dns.query(asked, 99)
    assert b"hidden" not in sent
    assert b"secret" in sent
    assert asked.edns


def test_a_name_is_not_completed_from_what_is_not_passed_on() -> None:
    # judged as secret.evil.com.good.test; where the pointer led, what is sent on has a zero
    end = 12 + len(b"\x06secret\x04evil\x03com\xc0\0\0\1\0\1")
    question = b"\x06secret\x04evil\x03com\xc0" + bytes([end + 5]) + b"\0\1\0\1"
    option = b"\0\0\x29\x04\xd0" + b"\x04good\x04test\0"
    packet = struct.pack(">6H", 7, 0x0100, 1, 0, 0, 1) + question + option
    assert dns.question(packet) is None


def test_what_is_no_single_question_is_none() -> None:
    good = _query("a.com")
    for packet in (
        b"",
        good[:11],
        good[:-1],
        good[:4] + b"\0\2" + good[6:],  # two questions
        good[:2] + b"\x81\0" + good[4:],  # a reply
        good[:2] + b"\x28\0" + good[4:],  # an update
        good[:12] + b"\xc0\x0c\0\1\0\1",  # a pointer to itself
        good[:-2] + b"\0\3",  # class CHAOS
    ):
        assert dns.question(packet) is None


def test_an_answer_counts_for_the_name_and_its_aliases_only() -> None:
    asked = _asked("api.example.com")
    owner, edge, other = b"\xc0\x0c", _name("edge.cdn.net"), _name("victim.net")
    packet = _reply(
        asked, 9,
        _record(owner, dns.CNAME, edge, 600),
        _record(edge, dns.A, bytes([203, 0, 113, 1]), 120),
        _record(edge, dns.AAAA, bytes(15) + b"\1", 240),
        _record(other, dns.A, bytes([203, 0, 113, 2])),
    )  # fmt: skip
    answer = dns.answer(asked, packet)
    assert answer.addresses == ("203.0.113.1", "::1")
    assert answer.ttl == 120


def test_a_reply_to_another_question_or_number_is_none() -> None:
    asked = _asked("api.example.com")
    good = _reply(asked, 9)
    assert dns.reply(asked, good, 9) == b"\0\7" + good[2:]
    assert dns.reply(asked, good, 8) is None
    assert dns.reply(asked, _reply(_asked("bpi.example.com"), 9), 9) is None
    assert dns.reply(asked, dns.query(asked, 9), 9) is None


@given(st.binary(max_size=300))
def test_no_packet_raises(data: bytes) -> None:
    dns.question(data)
    asked = _asked("api.example.com")
    if dns.reply(asked, data, 9) is not None:
        dns.answer(asked, data)
    dns.answer(asked, _reply(asked, 9) + data)
    dns.answer(asked, _reply(asked, 9)[:6] + b"\0\x10" + _reply(asked, 9)[8:] + data)
