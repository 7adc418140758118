"""Ends in order: a signal that ends a command unwinds it, so that nothing half done is left."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Generator
from types import FrameType


@contextlib.contextmanager
def unwinding() -> Generator[None]:
    """Have SIGTERM and a hangup unwind what runs: no copy and no partial file stays behind."""

    def leave(number: int, _frame: FrameType | None) -> None:
        sys.exit(128 + number)

    # nohup(1) has a hangup ignored, and so it stays
    numbers = [
        number
        for number in (signal.SIGTERM, signal.SIGHUP)
        if signal.getsignal(number) is signal.SIG_DFL
    ]
    for number in numbers:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in numbers:
            signal.signal(number, signal.SIG_DFL)
