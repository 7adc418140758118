"""A pytest plugin: what was tried in the corpus, said at the end, whoever ran the tests.

Each test leaves what it found with its report: of a process of pytest-xdist's, nothing else
reaches the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable

import pytest

#: What a test may leave: an attack that failed, how often it had won with its defence off, and an
#: attack that works where it is known to.
HELD, WINS, GAP = "escape-held", "escape-wins", "escape-gap"
_found: defaultdict[str, list[object]] = defaultdict(list)

Property = Callable[[str, object], None]


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Take up what a test has left."""
    if report.when == "call":
        for name, value in report.user_properties:
            if name in (HELD, WINS, GAP):
                _found[name].append(value)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how much was tried."""
    held, gaps = _found[HELD], sorted({str(gap) for gap in _found[GAP]})
    wins = sum(won for won in _found[WINS] if isinstance(won, int))
    if held:
        terminalreporter.write_line(
            f"escape corpus: {len(set(held))} attacks, mounted {len(held)} times over all persons "
            f"and isolations, none won; as many controls won {wins} times"
        )
    for gap in gaps:
        terminalreporter.write_line(f"escape corpus: landlock isolation does not hold {gap}")
