"""A flood of refusals is counted, and the count is recorded whether or not there is another."""

from __future__ import annotations

from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.refusals import A_MINUTE, Refusals


class Book:
    """What was recorded, and a clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 1000.0
        self.entries: list[Entry] = []
        self.refusals = Refusals(self.entries.append, lambda: self.now)

    def refuse(self, uid: int, times: int) -> None:
        for number in range(times):
            self.refusals.add(
                uid, Entry(type=RecordType.DECISION, uid=uid, pid=number, reason=f"no {number}")
            )

    def sums(self) -> list[tuple[int | None, object]]:
        """What only a number was left of: whose, and how many."""
        return [(one.uid, one.detail["refusals"]) for one in self.entries if one.detail]


def test_so_many_are_recorded_and_the_rest_is_counted_when_the_minute_is_over() -> None:
    book = Book()
    book.refuse(7, A_MINUTE + 5)
    assert len(book.entries) == A_MINUTE
    assert book.refusals.next_tick() == 60
    book.now += 59
    book.refusals.tick()
    assert book.sums() == []
    book.now += 1
    book.refusals.tick()
    assert book.sums() == [(7, 5)]
    assert book.entries[-1].reason == f"no {A_MINUTE + 4}"
    assert book.refusals.next_tick() is None
    book.refuse(7, 1)
    assert len(book.entries) == A_MINUTE + 2


def test_what_was_all_recorded_is_not_counted_again() -> None:
    book = Book()
    book.refuse(7, A_MINUTE)
    assert book.refusals.next_tick() is None
    book.refusals.close()
    assert book.sums() == []


def test_one_users_flood_hides_nothing_of_anothers() -> None:
    book = Book()
    book.refuse(7, A_MINUTE * 3)
    book.refuse(8, 2)
    assert [one.uid for one in book.entries[-2:]] == [8, 8]


def test_the_end_and_too_many_users_lose_no_count() -> None:
    book = Book()
    book.refuse(1, A_MINUTE + 3)
    for uid in range(2, 4099):
        book.refuse(uid, 1)
    assert book.sums() == [(1, 3)]
    book.refuse(4098, A_MINUTE)
    book.refusals.close()
    assert book.sums() == [(1, 3), (4098, 1)]
