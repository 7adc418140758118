"""A pytest plugin: one line of JSON for each test, to the file that SAFECLAW_RESULTS names."""

from __future__ import annotations

import json
import os

import pytest


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write how a test ended, as soon as it has."""
    if report.when == "call" or not report.passed:
        line = {"test": report.nodeid, "outcome": report.outcome, "text": report.longreprtext}
        with open(os.environ["SAFECLAW_RESULTS"], "a") as out:
            out.write(json.dumps(line) + "\n")
