"""Output files, whole or not there: written beside their place, and put there at the end."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Generator
from pathlib import Path

from safeclaw.errors import JournalError


def writable(path: Path) -> Path:
    """Return the file that is to be written, with links followed.

    Raises:
        JournalError: what is there is no file to be replaced, but a device such as /dev/null.
    """
    try:
        path = path.resolve()
        if path.exists() and not path.is_file():
            raise JournalError(f"{path}: not an ordinary file", hint="name one to be written")
    except OSError as error:
        raise JournalError.of(error, path) from error
    return path


@contextlib.contextmanager
def whole(path: Path) -> Generator[Path]:
    """Give the name to write to; the file takes the place of ``path`` when the block has ended.

    Raises:
        JournalError: it cannot be written.
    """
    path = writable(path)
    partial = path.with_name(path.name + ".partial")
    try:
        yield partial
        os.replace(partial, path)
    except OSError as error:
        raise JournalError.of(error, path) from error
    finally:
        partial.unlink(missing_ok=True)
