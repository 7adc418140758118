"""Time in words, and proofs of inclusion."""

from __future__ import annotations

import time
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from safeclaw.daemon.evidence import period
from safeclaw.daemon.evidence.proofs import Prover, included
from safeclaw.daemon.journal.merkle import Frontier, leaf_hash
from safeclaw.errors import UsageError

NOW = datetime(2026, 5, 31, 12, 30, 15, tzinfo=UTC)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("now", "2026-05-31T12:30:15"),
        ("today", "2026-05-31T00:00:00"),
        ("Yesterday", "2026-05-30T00:00:00"),
        ("week", "2026-05-25T00:00:00"),
        ("month", "2026-05-01T00:00:00"),
        ("quarter", "2026-04-01T00:00:00"),
        ("last week", "2026-05-18T00:00:00"),
        ("last month", "2026-04-01T00:00:00"),
        ("last quarter", "2026-01-01T00:00:00"),
        ("last year", "2025-01-01T00:00:00"),
        ("year", "2026-01-01T00:00:00"),
        ("30 days", "2026-05-01T12:30:15"),
        ("30 days ago", "2026-05-01T12:30:15"),
        ("1 hour", "2026-05-31T11:30:15"),
        ("90 minutes", "2026-05-31T11:00:15"),
        ("2weeks", "2026-05-17T12:30:15"),
        ("3 months", "2026-02-28T12:30:15"),
        ("1 quarter", "2026-02-28T12:30:15"),
        ("2 years", "2024-05-31T12:30:15"),
        ("2026-Q1", "2026-01-01T00:00:00"),
        ("2026-02", "2026-02-01T00:00:00"),
        ("2026-02-03", "2026-02-03T00:00:00"),
        ("2026-02-03T04:05:06Z", "2026-02-03T04:05:06"),
        ("2026-02-03T04:05:06+02:00", "2026-02-03T02:05:06"),
        ("2026-02-03 04:05", "2026-02-03T04:05:00"),
    ],
)
def test_words_say_a_time(words: str, expected: str) -> None:
    assert period.moment(words, NOW).replace(tzinfo=None).isoformat() == expected


@pytest.mark.parametrize(
    "words", ["", "soon", "30", "30 apples", "2026-13-01", "2026-q5", "99999 years", "-1 days"]
)
def test_words_that_say_no_time_are_a_usage_error_with_a_hint(words: str) -> None:
    with pytest.raises(UsageError) as caught:
        period.moment(words, NOW)
    assert caught.value.exit_status == 2
    assert caught.value.hint


def test_an_end_before_the_begin_is_a_usage_error() -> None:
    with pytest.raises(UsageError):
        period.parse("today", "yesterday", NOW)
    with pytest.raises(UsageError):
        period.parse("2027-01-01", None, NOW)
    assert period.parse(None, None, NOW) == period.Period()


@given(st.integers(1, 70), st.integers(0, 40), st.data())
def test_every_leaf_has_a_proof_and_no_other_leaf_has_it(
    size: int, base: int, data: st.DataObject
) -> None:
    base = min(base, size - 1)
    leaves = [leaf_hash(str(number).encode()) for number in range(size)]
    frontier = Frontier()
    for leaf in leaves[:base]:
        frontier.append(leaf)
    prover = Prover(base, frontier.nodes)
    for leaf in leaves[base:]:
        prover.append(leaf, wanted=True)
        frontier.append(leaf)
    root, paths = prover.finish()
    assert root == frontier.root()
    assert sorted(paths) == list(range(base, size))
    for index, path in paths.items():
        assert included(leaves[index], index, size, path, root)
        other = data.draw(st.integers(0, size - 1))
        if other != index:
            assert not included(leaves[other], index, size, path, root)
            assert not included(leaves[index], other, size, path, root)
        assert not included(leaves[index], index, size, [*path, bytes(32)], root)
        if path:
            assert not included(leaves[index], index, size, path[:-1], root)


@pytest.mark.parametrize("words", ["2000 years", "0500-01-01", "0026-02-03"])
def test_a_time_long_ago_sorts_before_every_record(words: str) -> None:
    begin = period.moment(words, NOW)
    assert period.stamp(begin) < period.stamp(NOW)
    assert len(period.stamp(begin)) == len("2026-05-31T12:30:15.000000Z")


def test_a_time_means_the_same_to_every_command_wherever_it_is_said(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TZ", "Asia/Tokyo")
    time.tzset()
    try:
        now = datetime(2026, 3, 31, 12, tzinfo=UTC)
        for words, meant in (
            ("2026-01-31T12:00", "2026-01-31T12:00"), ("2026-01-31", "2026-01-31T00:00"),
            ("2026-01-31T12:00+02:00", "2026-01-31T10:00"), ("last quarter", "2025-10-01T00:00"),
            ("2 months", "2026-01-31T12:00"), ("30m", "2026-03-31T11:30"),
            ("31 mins ago", "2026-03-31T11:29"), ("1h", "2026-03-31T11:00"),
            ("2 hrs", "2026-03-31T10:00"), ("90s", "2026-03-31T11:58"), ("7d", "2026-03-24T12:00"),
            ("1 w", "2026-03-24T12:00"),
        ):  # fmt: skip
            assert period.stamp(period.moment(words, now))[:16] == meant, words
    finally:
        monkeypatch.undo()
        time.tzset()
