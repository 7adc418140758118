"""What all tests share: what was not tested is said, and in CI it is a failure."""

from __future__ import annotations

import os
import signal

import pytest
from hypothesis import settings

pytest_plugins = ["tests.escape.summary"]

# A test does not assert a time: a busy machine would fail it.
settings.register_profile("safeclaw", deadline=None)
settings.load_profile("safeclaw")

# Nor does what the tests were started with decide: nohup(1), or a shell's "&", has signals ignored,
# which every program here would ignore as well.  Those that Python itself ignores stay.
for _number in signal.valid_signals() - {signal.SIGPIPE, signal.SIGXFSZ}:
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, signal.SIG_DFL)

_skipped: list[str] = []


@pytest.fixture(scope="session")
def soak_seconds() -> int:
    """For how long each long campaign goes on: what ``./dev soak`` was told."""
    return int(os.environ.get("SAFECLAW_SOAK_SECONDS", "600"))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Remember what was skipped."""
    if report.skipped and not hasattr(report, "wasxfail"):
        _skipped.append(report.nodeid)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Remember the modules that were skipped whole, too."""
    if report.skipped:
        _skipped.append(report.nodeid)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """In CI, a test that did not run is a failure: lost coverage must be seen."""
    if _skipped and os.environ.get("CI") and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say what this machine could not test."""
    if _skipped:
        terminalreporter.section("not tested on this machine")
        for name in _skipped:
            terminalreporter.line(name)
        if os.environ.get("CI"):
            terminalreporter.line("CI is set: this is a failure")
