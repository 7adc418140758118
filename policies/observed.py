"""What a session did, read back: targets as a record has them, into targets again.

The inverse of :func:`~safeclaw.policies.model.target_fields`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import cast

import msgspec

from safeclaw.policies.model import (
    AddressTarget,
    Attempt,
    FileTarget,
    NameTarget,
    OtherTarget,
    ProgramTarget,
    SocketTarget,
    Target,
)

_ESCAPE = re.compile(rb"\\(?:\\|x([0-9a-f]{2}))")


class Observed(msgspec.Struct, frozen=True):
    """One kind of attempt, and how often it was made."""

    attempt: Attempt
    count: int


def plain(text: str) -> str:
    """Return the text that :func:`~safeclaw.policies.model.printable` made ``text`` of."""
    if "\\" not in text:
        return text

    def byte(found: re.Match[bytes]) -> bytes:
        return b"\\" if found[1] is None else bytes((int(found[1], 16),))

    whole = text.encode("utf-8", "surrogateescape")
    return _ESCAPE.sub(byte, whole).decode("utf-8", "surrogateescape")


def target_of(fields: Mapping[str, object]) -> Target:
    """Return the target that a record's ``target`` describes; an unknown one as words."""
    match fields:
        case {"path": str(path), "to": str(to)}:
            return FileTarget(plain(path), plain(to), fields.get("link") is True)
        case {"path": str(path)}:
            return FileTarget(plain(path), link=fields.get("link") is True)
        case {"program": str(program), "argv": list()}:
            return ProgramTarget(
                plain(program),
                _texts(fields["argv"]),
                _texts(fields.get("interpreters", [])),
                _texts(fields.get("arguments", [])),
                _texts(fields.get("variables", [])),
            )
        case {"protocol": str(protocol), "address": str(address), "port": int(port)}:
            names = _texts(fields.get("names", []))
            return AddressTarget(protocol, address, port, names, fields.get("own") is True)
        case {"name": str(name)}:
            return NameTarget(plain(name))
        case {"socket": str(path)}:
            return SocketTarget(plain(path))
        case _:
            return OtherTarget(plain(str(fields.get("what", ""))))


def _texts(value: object) -> tuple[str, ...]:
    return tuple(plain(str(item)) for item in cast("list[object]", value))
