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
        if mine == 3:
            return  # it is not held up, and never looks so, however long it takes
        relief.busy = object()
        relief.wake()
        free.wait()  # until the last one has had its turn
        assert relief.turn == 3
        if mine == 0:
            stuck_ended.set()

    Relief(loop).run()
    assert served == [0, 1, 2, 3]
    free.set()
    assert stuck_ended.wait(60)


def test_what_the_loop_raises_is_raised_to_whoever_runs_it() -> None:
    def loop(relief: Relief, mine: int) -> None:
        raise OSError(5, "the listener is of no use")

    with pytest.raises(OSError, match="no use"):
        Relief(loop).run()


def test_where_no_thread_can_be_started_the_one_that_is_there_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    start, refused, ended = threading.Thread.start, threading.Event(), threading.Event()
    turns = list[int]()

    def none_left(thread: threading.Thread) -> None:
        if thread.name == "loop" and turns and not ended.is_set():
            refused.set()
            ended.wait(60)  # the loop looks at its turn just now
            raise RuntimeError("can't start new thread")
        start(thread)

    def loop(relief: Relief, mine: int) -> None:
        turns.append(mine)
        relief.busy = object()
        relief.wake()
        assert refused.wait(60)  # it is held up, and is to be relieved
        turns.append(relief.turn)
        relief.busy = None  # or it would be relieved once more, if it took a while to come to it
        ended.set()

    monkeypatch.setattr(threading.Thread, "start", none_left)
    Relief(loop).run()
    assert turns == [0, 0]
