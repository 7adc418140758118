"""Counting steps: how the tests show a cost without measuring time."""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest


def count_steps(act: Callable[[], object]) -> int:
    """Return how many lines of the policies package run inside ``act``."""
    count = 0

    def tracer(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal count
        if "/policies/" in frame.f_code.co_filename and event == "line":
            count += 1
        return tracer

    before = sys.gettrace()
    sys.settrace(tracer)
    try:
        act()
    finally:
        sys.settrace(before)
    return count


@pytest.fixture(name="steps", scope="session")
def steps_fixture() -> Callable[[Callable[[], object]], int]:
    """The counter, for tests that take it as an argument."""
    return count_steps
