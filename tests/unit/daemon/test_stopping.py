"""The words of ``safeclaw kill``, read by hand: what is plain, and what is left to click."""

from __future__ import annotations

import pytest

from safeclaw.daemon.cli.stopping import Order, read
from safeclaw.errors import UsageError


@pytest.mark.parametrize(
    ("words", "order"),
    [
        ("--all", Order(None, "", "auto", False)),
        ("demo", Order("demo", "", "auto", False)),
        ("--all --why drill --json", Order(None, "drill", "auto", True)),
        ("--why=drill demo --broker system", Order("demo", "drill", "system", False)),
        ("--broker=/run/b.sock --all", Order(None, "", "/run/b.sock", False)),
    ],
)
def test_plain_words_are_an_order(words: str, order: Order) -> None:
    assert read(words.split()) == order


@pytest.mark.parametrize(
    "words", ["", "--help", "a b", "--all demo", "--why", "demo --broker", "--nothing", "-- demo"]
)
def test_other_words_order_nothing(words: str) -> None:
    assert read(words.split()) is None


def test_a_broker_that_is_none_is_refused() -> None:
    with pytest.raises(UsageError):
        read(["--all", "--broker", "elsewhere"])
