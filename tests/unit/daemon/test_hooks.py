"""Commands of the operator's: with nothing left to start them with, and those that hang."""

from __future__ import annotations

import math
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon import hooks


@pytest.fixture(name="descriptors")
def _descriptors() -> Iterator[int]:
    """Leave one descriptor less than a hook takes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(os.devnull, os.O_RDONLY) for _ in range(3)]
    for one in free:
        os.close(one)
    yield free[0]
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize("left", [0, 1])
def test_without_descriptors_one_is_told_and_none_is_lost(descriptors: int, left: int) -> None:
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors + left, hard))
    assert hooks.spawn(("true",), {}) == "true: Too many open files"
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    again = os.open(os.devnull, os.O_RDONLY)
    os.close(again)
    assert again == descriptors


def test_hooks_that_hang_are_killed_with_all_they_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fifo = tmp_path / "held"
    os.mkfifo(fifo)
    reader = os.open(fifo, os.O_RDONLY | os.O_NONBLOCK)
    hang = ("sh", "-c", f"exec 3>{fifo}; sleep 10000 & wait")
    try:
        monkeypatch.setattr(hooks, "LIMIT", math.inf)  # without a limit they stay
        for _ in range(32):
            assert hooks.spawn(hang, {}) is None
        hooks.reap()
        assert hooks.spawn(("true",), {}) == "true: 32 hooks are running already"
        os.set_blocking(reader, True)
        monkeypatch.setattr(hooks, "LIMIT", 0.0)
        assert hooks.next_due() == 0
        hooks.reap()
        assert hooks.next_due() is None
        failed: list[str] = []
        while len(failed) < 32:
            os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOWAIT)
            failed += hooks.failures()
        assert failed == ["sh: killed, it ran for more than 0 s"] * 32
        assert os.read(reader, 1) == b""  # nobody holds it any more
    finally:
        os.close(reader)
    monkeypatch.setattr(hooks, "LIMIT", 60.0)
    assert hooks.spawn(("true",), {}) is None
