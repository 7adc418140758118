"""The races, again and again: each wins often with its one defence off, and never with it on.

``./dev soak 3600 tests/escape/test_races.py`` goes on for an hour and says what that was.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterable

import pytest

from tests.escape.corpus import Attack
from tests.escape.prison import Prison

_PRISONS = 4


def with_it_off(prison: Prison, races: Iterable[Attack]) -> tuple[Counter[str], Counter[str]]:
    """Run each until it has won as often as its goal; return how often that was, in how many."""
    wins, tries = Counter[str](), Counter[str]()
    for defence in sorted({one.defence for one in races}):
        found = prison.mount([one for one in races if one.defence == defence], defence, {})
        for name, outcome in found.items():
            wins[name], tries[name] = outcome.wins, outcome.tries
    return wins, tries


@pytest.mark.soak
def test_no_race_is_won_while_its_control_wins_and_wins(
    prison: Prison, soak_seconds: int, capsys: pytest.CaptureFixture[str]
) -> None:
    races = [one for one in prison.attacks if one.goal > 1]
    until = time.monotonic() + soak_seconds / _PRISONS
    wins, tries = Counter[str](), Counter[str]()
    while not wins or time.monotonic() < until:
        won, tried = with_it_off(prison, races)
        for one in races:
            assert won[one.name] >= one.goal, f"the control of {one.name} proves nothing"
        for name, held in prison.mount(races, None, dict(tried)).items():
            assert held.wins == 0, f"{name}: {held.said}"
            assert held.tries >= tried[name], f"{name}: {held.said}"
        wins, tries = wins + won, tries + tried
    with capsys.disabled():
        for name in sorted(wins):
            said = f"{tries[name]} tries: {wins[name]} wins with its defence off, 0 with it on"
            print(f"\n{prison.name}-{prison.isolation} {name}: {said}", end="")
