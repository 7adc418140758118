"""A directory that another session's agent turns into a link while a view is put up."""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
from collections.abc import Generator, Iterator
from pathlib import Path

import pytest

from safeclaw.sandbox import walls

_AT_FDCWD, _EXCHANGE = -100, 2
_libc = ctypes.CDLL(None)
#: How often the directory is put into each view, and how many views are put up at most until one
#: shows too much.
_TIMES, _VIEWS_MAX = 300, 1_000


@pytest.fixture
def workspace(tmp_path: Path) -> Iterator[Path]:
    """A workspace in which ``docs`` is a directory and, by turns, a link that leads out of it."""
    secret, place = tmp_path / "secret", tmp_path / "ws"
    (place / "docs").mkdir(parents=True)
    secret.mkdir()
    (secret / "key").touch()
    # as the host's files are named while a view is put up
    (place / "other").symlink_to(f"/.old{secret}")
    one, other = bytes(place / "docs"), bytes(place / "other")
    turning = os.fork()
    if turning == 0:
        while os.getppid() != 1:
            _libc.renameat2(_AT_FDCWD, one, _AT_FDCWD, other, _EXCHANGE)
        os._exit(0)
    yield place
    os.kill(turning, signal.SIGKILL)
    os.waitpid(turning, 0)


def _view(workspace: Path) -> bytes:
    """Put up a view of the workspace with ``docs`` to read only; return what is in it."""
    steps = (
        walls.Step("proc", "/proc", writable=True),
        walls.Step("bind", str(workspace), writable=True),
        *[walls.Step("bind", f"{workspace}/docs")] * _TIMES,
    )
    said, say = os.pipe()
    outer = os.fork()
    if outer == 0:
        with contextlib.suppress(BaseException):
            walls.identity()
            init = os.fork()
            if init == 0:
                with contextlib.suppress(BaseException):
                    walls.put_up(steps, "/")
                    mounts = Path("/proc/self/mountinfo").read_text()
                    os.write(say, b"secret" if "/secret " in mounts else b"kept")
                os._exit(0)
            os.waitpid(init, 0)
        os._exit(0)
    os.close(say)
    os.waitpid(outer, 0)
    with open(said, "rb") as source:
        return source.read()  # nothing: no session would have started


@contextlib.contextmanager
def _by_name(root: str, path: str) -> Generator[str]:
    yield root + path


def test_what_a_directory_is_turned_into_is_not_in_the_view(
    workspace: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as weakened:
        weakened.setattr(walls, "_still", _by_name)
        views = next(number for number in range(_VIEWS_MAX) if _view(workspace) == b"secret") + 1
    seen = [_view(workspace) for _ in range(views)]
    assert b"secret" not in seen
    while b"kept" not in seen:  # and there are views
        seen.append(_view(workspace))
