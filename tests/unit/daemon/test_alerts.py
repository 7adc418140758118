"""When an alert leaves: the clock is the test's, the hooks are real commands."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from safeclaw.daemon.alerts import EVERY, Alert, Alerts


class Heard:
    """A hook that hands on what it is told."""

    def __init__(self, fifo: Path) -> None:
        os.mkfifo(fifo)
        self._stream = os.fdopen(os.open(fifo, os.O_RDWR), "r")
        code = f"import sys; open({str(fifo)!r}, 'w').write(sys.stdin.read())"
        self.command = (sys.executable, "-c", code)

    def next(self) -> dict[str, Any]:
        """Wait for the next alert."""
        found: dict[str, Any] = json.loads(self._stream.readline())
        return found

    def close(self) -> None:
        self._stream.close()


@pytest.fixture(name="heard")
def _heard(tmp_path: Path) -> Iterator[Heard]:
    heard = Heard(tmp_path / "told")
    yield heard
    heard.close()


def test_what_is_held_leaves_as_one_with_its_number(heard: Heard) -> None:
    failed: list[str] = []
    alerts = Alerts(heard.command, lambda: "c", failed.append)
    alerts.raised(Alert("violation", "first"), 100.0)
    alerts.raised(Alert("violation", "second"), 101.0)
    alerts.raised(Alert("violation", "third"), 102.0)
    first = heard.next()
    assert (first["reason"], first.get("count", 1)) == ("first", 1)
    assert alerts.next_tick(102.0) == pytest.approx(EVERY - 2)
    alerts.tick(100.0 + EVERY - 0.1)
    assert alerts.tally.sent == 1
    alerts.tick(100.0 + EVERY)
    held = heard.next()
    assert (held["reason"], held["count"]) == ("third", 2)
    assert alerts.next_tick(200.0) is None
    assert (alerts.tally.raised, alerts.tally.sent, failed) == (3, 2, [])


def test_one_kind_does_not_hold_up_another(heard: Heard) -> None:
    alerts = Alerts(heard.command, lambda: None, lambda _: None)
    alerts.raised(Alert("violation", "a"), 100.0)
    assert heard.next()["alert"] == "violation"
    alerts.raised(Alert("fault", "b"), 100.0)
    assert heard.next()["alert"] == "fault"


def test_without_a_hook_alerts_are_counted_only() -> None:
    alerts = Alerts((), lambda: None, lambda _: None)
    alerts.raised(Alert("fault", "b"), 100.0)
    assert (alerts.tally.raised, alerts.tally.sent, alerts.tally.configured) == (1, 0, False)


def test_a_hook_that_cannot_be_started_is_said() -> None:
    failed: list[str] = []
    alerts = Alerts(("/nowhere/hook",), lambda: None, failed.append)
    alerts.raised(Alert("fault", "b"), 100.0)
    assert failed == ["/nowhere/hook: No such file or directory"]
    assert (alerts.tally.sent, alerts.tally.failed) == (0, 1)
