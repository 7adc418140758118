"""Small files of the broker's own state: replaced whole, on disk before the call returns.

Values are msgspec structs, kept as JSON so that a person can read them.  A file
that cannot be understood is an error, never an empty state: what it held may have
been a kill switch.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import TypeVar

import msgspec

from safeclaw.errors import BrokerError

Value = TypeVar("Value")


def read(path: Path, kind: type[Value], empty: Value) -> Value:
    """Return the value in a file, ``empty`` when it is not there.  BrokerError."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return empty
    except OSError as problem:
        raise BrokerError.of(problem, f"{path}: cannot be read") from problem
    with open(descriptor, "rb") as source:
        data = source.read()
    try:
        return msgspec.json.decode(data, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError) as problem:
        raise BrokerError(
            f"{path}: damaged: {problem}",
            hint="restore it from a backup; nothing is allowed before",
        ) from problem


def write(path: Path, value: object, mode: int = 0o600) -> None:
    """Replace a file by a value; when this returns, the new one is on disk.  BrokerError."""
    replace(path, msgspec.json.format(msgspec.json.encode(value), indent=1) + b"\n", mode)


def replace(path: Path, data: bytes, mode: int = 0o600) -> None:
    """Replace a file's content; when this returns, the new one is on disk.  BrokerError."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fresh)
        descriptor = os.open(
            fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode
        )
        with open(descriptor, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.rename(fresh, path)
        directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as problem:
        raise BrokerError.of(problem, f"{path}: cannot be written") from problem
