"""DNS messages, as far as a forwarding resolver has to understand them (RFC 1035).

Pure: bytes in, values out.  A message that is not understood is None, never an
exception: what the agent or the world sends may be anything.
"""

from __future__ import annotations

import ipaddress
import struct

import msgspec

HEADER = 12
A, CNAME, AAAA, OPT, SVCB, HTTPS = 1, 5, 28, 41, 64, 65
#: No records' types, but questions about many: zone transfers, keys, and any (RFC 6895, 3.1).
QTYPES = range(249, 256)
_IN = 1
NOERROR, SERVFAIL, NXDOMAIN = 0, 2, 3
_QR, _RD, _RA, _OPCODE = 0x8000, 0x0100, 0x0080, 0x7800
_JUMPS_MAX = 64
_RECORDS_MAX = 512
_EDNS_SIZE = 1232
_PLAIN = frozenset(b"abcdefghijklmnopqrstuvwxyz0123456789-_")


class Question(msgspec.Struct, frozen=True):
    """One question: its name in lower case, its type, and its own bytes."""

    ident: int
    name: str
    kind: int
    raw: bytes
    recursion: bool
    edns: bool


class Answer(msgspec.Struct, frozen=True):
    """What a reply says of the name that was asked: addresses, and for how many seconds."""

    addresses: tuple[str, ...]
    ttl: int


def question(packet: bytes) -> Question | None:
    """Return the question of a query with exactly one, of class IN."""
    if len(packet) < HEADER:
        return None
    ident, flags, count, answers, authority, more = struct.unpack_from(">6H", packet)
    if flags & (_QR | _OPCODE) or (count, answers, authority) != (1, 0, 0):
        return None
    # SAFETY: no pointers: only the question is passed on, and behind it they would lead elsewhere.
    read = _name(packet, HEADER, jumps=0)
    if read is None or read[1] + 4 > len(packet):
        return None
    name, end = read
    kind, family = struct.unpack_from(">HH", packet, end)
    if family != _IN:
        return None
    # an OPT record stands right behind the question: a root name and its type (RFC 6891)
    edns = more == 1 and packet[end + 4 : end + 7] == b"\0\0\x29"
    raw = packet[HEADER : end + 4]
    return Question(ident, name, kind, raw, bool(flags & _RD), edns)


def query(asked: Question, ident: int) -> bytes:
    """Return the query to send on: the question in lower case, and nothing else of the caller's.

    SAFETY: options, padding and the case of letters would carry what no policy has seen.
    """
    header = struct.pack(">6H", ident, _RD, 1, 0, 0, int(asked.edns))
    option = struct.pack(">BHHIH", 0, OPT, _EDNS_SIZE, 0, 0) if asked.edns else b""
    return header + _lower(asked.raw) + option


def reply(asked: Question, packet: bytes, ident: int) -> bytes | None:
    """Return the reply for the asker, or None unless ``packet`` answers ``query(asked, ident)``."""
    end = HEADER + len(asked.raw)
    if len(packet) < end:
        return None
    number, flags, count = struct.unpack_from(">3H", packet)
    if number != ident or not flags & _QR or count != 1:
        return None
    if packet[HEADER:end].lower() != asked.raw.lower():
        return None
    return asked.ident.to_bytes(2, "big") + packet[2:HEADER] + asked.raw + packet[end:]


def refusal(asked: Question, code: int) -> bytes:
    """Return a reply without answers; NOERROR says that there is nothing of that type."""
    flags = _QR | _RA | (_RD if asked.recursion else 0) | code
    return struct.pack(">6H", asked.ident, flags, 1, 0, 0, 0) + asked.raw


def answer(asked: Question, packet: bytes) -> Answer:
    """Return the addresses that a checked reply gives for the name, through its CNAMEs."""
    count = min(struct.unpack_from(">H", packet, 6)[0], _RECORDS_MAX)
    offset = HEADER + len(asked.raw)
    chain = {asked.name}
    addresses: list[str] = []
    ttl = 0xFFFFFFFF
    for _ in range(count):
        read = _name(packet, offset)
        if read is None or read[1] + 10 > len(packet):
            break
        owner, at = read
        kind, family, lifetime, size = struct.unpack_from(">HHIH", packet, at)
        at += 10
        offset = at + size
        if offset > len(packet):
            break
        if family != _IN or owner not in chain:
            continue
        if kind == CNAME:
            target = _name(packet, at)
            if target is not None:
                chain.add(target[0])
        elif (kind, size) in ((A, 4), (AAAA, 16)):
            addresses.append(str(ipaddress.ip_address(packet[at:offset])))
        else:
            continue
        ttl = min(ttl, lifetime)
    return Answer(tuple(addresses), ttl if addresses else 0)


def _lower(raw: bytes) -> bytes:
    """Lower the letters of a question; the lengths of labels are below any letter."""
    return raw[:-4].lower() + raw[-4:]


def _name(packet: bytes, offset: int, *, jumps: int = _JUMPS_MAX) -> tuple[str, int] | None:
    """Return a name in lower case and the offset behind it; so many pointers are followed."""
    labels: list[str] = []
    end = 0
    for _ in range(_JUMPS_MAX + 128):
        if offset >= len(packet):
            return None
        size = packet[offset]
        if size & 0xC0 == 0xC0:
            if offset + 1 >= len(packet) or not jumps:
                return None
            jumps -= 1
            end = end or offset + 2
            offset = (size & 0x3F) << 8 | packet[offset + 1]
            continue
        if size & 0xC0:
            return None
        offset += 1
        if not size:
            return ".".join(labels), end or offset
        label = packet[offset : offset + size].lower()
        if len(label) != size:
            return None
        # what no host is called is kept apart from what one could be: a dot within a label
        labels.append("".join(chr(byte) if byte in _PLAIN else f"\\{byte:03d}" for byte in label))
        offset += size
    return None
