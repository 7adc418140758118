"""Commands of the operator's, where there is nothing left to start them with."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator

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
