"""What the supervisor hears from the processes that put up the walls."""

from __future__ import annotations

import os
import struct

import pytest

from safeclaw.errors import WallError
from safeclaw.sandbox import session


def said(data: bytes) -> int:
    reader, writer = os.pipe()
    os.write(writer, data)
    os.close(writer)
    return reader


def test_a_pid_that_looks_like_a_complaint_is_a_pid() -> None:
    pid = 0x2A00 | ord("!")
    reader = said(struct.pack("=ci", b"+", pid))
    assert struct.unpack("=i", session._read(reader, 4)) == (pid,)  # pyright: ignore[reportPrivateUsage]
    os.close(reader)


def test_a_complaint_is_raised_with_its_text() -> None:
    reader = said(b"!unshare: Operation not permitted")
    with pytest.raises(WallError, match="unshare: Operation not permitted"):
        session._read(reader, 4)  # pyright: ignore[reportPrivateUsage]
    os.close(reader)


def test_an_end_without_a_word_is_an_error() -> None:
    reader = said(b"+\0\0")
    with pytest.raises(WallError):
        session._read(reader, 4)  # pyright: ignore[reportPrivateUsage]
    os.close(reader)
