"""What an error leaves behind: no descriptor, no entry of a thread, no process that goes on."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from safeclaw.sandbox import first, interrupt
from safeclaw.sandbox.caller import Caller
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import Resolver


def deep(place: Path) -> int:
    """Make a directory whose path is longer than PATH_MAX; return a descriptor of it."""
    fd = os.open(place, os.O_RDONLY)
    for _ in range(25):
        os.mkdir("n" * 200, dir_fd=fd)
        inner = os.open("n" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = inner
    return fd


def test_a_file_whose_path_is_too_long_leaves_nothing_open(tmp_path: Path) -> None:
    root, far = os.open("/", os.O_PATH), deep(tmp_path)
    caller, resolver = Caller(os.getpid()), Resolver(root)
    held = os.listdir("/proc/self/fd")
    with pytest.raises(OSError, match="too long"):
        resolver.pin_descriptor(caller, far)
    with pytest.raises(OSError, match="too long"):
        resolver.pin_parent(caller, far, "name")
    assert os.listdir("/proc/self/fd") == held
    os.close(far)
    os.close(root)


def test_a_first_process_that_nobody_hears_ends_all_the_same() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    first._say(writer, OSError("said to nobody"))  # pyright: ignore[reportPrivateUsage]
    os.close(writer)


def test_who_cannot_be_looked_after_does_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(_: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", none_left)
    monkeypatch.setattr(interrupt, "_watched", False)
    note = Notification.__new__(Notification)
    with pytest.raises(BlockingIOError):
        interrupt.waiting(note, lambda: pytest.fail("it would wait for ever"))
    assert not interrupt._waiting  # pyright: ignore[reportPrivateUsage]


def test_callers_that_come_and_go_are_looked_after_by_one_watch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started = list[str]()

    def counted(thread: threading.Thread) -> None:
        started.append(thread.name)

    monkeypatch.setattr(threading.Thread, "start", counted)
    monkeypatch.setattr(interrupt, "_watched", False)
    note = Notification.__new__(Notification)
    for _ in range(100):
        assert interrupt.waiting(note, lambda: 7) == 7
    assert started == ["interrupter"]
