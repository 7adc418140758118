"""A loop that is held up is gone on with by another thread, and ends with whoever has the turn."""

from __future__ import annotations

import threading

import pytest

from safeclaw.sandbox.relief import Relief


def test_a_call_that_does_not_end_gives_the_turn_to_a_fresh_thread() -> None:
    free, served = threading.Event(), list[int]()
    stuck_ended = threading.Event()

    def loop(relief: Relief, mine: int) -> None:
        served.append(mine)
        relief.busy = object()
        relief.wake()
        if mine < 3:
            free.wait()  # until the last one has had its turn
            assert relief.turn == 3
            if mine == 0:
                stuck_ended.set()
            return
        relief.busy = None

    Relief(loop).run()
    assert served == [0, 1, 2, 3]
    free.set()
    assert stuck_ended.wait(10)


def test_what_the_loop_raises_is_raised_to_whoever_runs_it() -> None:
    def loop(relief: Relief, mine: int) -> None:
        raise OSError(5, "the listener is of no use")

    with pytest.raises(OSError, match="no use"):
        Relief(loop).run()
