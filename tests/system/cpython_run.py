"""Runs one of CPython's own test modules and writes each test's outcome, as it happens.

Usage: python3 cpython_run.py MODULE RESULT [TEST...].  Every line of RESULT is a JSON list:
the test's id, its outcome, and what was said.  A test that ends the whole
process has the outcome ``started`` alone.  Needs nothing but the interpreter and its tests.
"""

from __future__ import annotations

import faulthandler
import importlib
import json
import os
import sys
import tempfile
import unittest
from typing import Any

#: Nothing here takes so long; what does, waits for something that never comes.
_LONGEST_SECONDS = 100
#: Waits for the hypervisor, in some machines for ever.
_LEFT_OUT = "ThreadedVSOCKSocketStreamTest"


class _Outcomes(unittest.TestResult):
    """Writes outcomes to an open file; nothing is kept."""

    def __init__(self, out: int) -> None:
        super().__init__()
        self._out = out

    def _write(self, test: Any, outcome: str, text: str = "") -> None:
        line = json.dumps([test.id(), outcome, text]) + "\n"
        os.write(self._out, line.encode())

    def startTest(self, test: unittest.TestCase) -> None:
        super().startTest(test)
        faulthandler.dump_traceback_later(_LONGEST_SECONDS, exit=True)
        self._write(test, "started")

    def stopTest(self, test: unittest.TestCase) -> None:
        super().stopTest(test)
        faulthandler.cancel_dump_traceback_later()

    def addSuccess(self, test: unittest.TestCase) -> None:
        self._write(test, "passed")

    def addError(self, test: unittest.TestCase, err: Any) -> None:
        super().addError(test, err)
        self._write(test, "failed", self.errors[-1][1])

    def addFailure(self, test: unittest.TestCase, err: Any) -> None:
        super().addFailure(test, err)
        self._write(test, "failed", self.failures[-1][1])

    def addSubTest(self, test: unittest.TestCase, subtest: unittest.TestCase, err: Any) -> None:
        if err is not None:
            self._write(test, "failed", self._exc_info_to_string(err, test))  # type: ignore[attr-defined]

    def addSkip(self, test: unittest.TestCase, reason: str) -> None:
        self._write(test, "skipped", reason)

    def addExpectedFailure(self, test: unittest.TestCase, err: Any) -> None:
        self._write(test, "failed as expected")

    def addUnexpectedSuccess(self, test: unittest.TestCase) -> None:
        self._write(test, "passed against expectation")


def main(module: str, result: str, *chosen: str) -> None:
    """Run the module's tests (or those chosen, by id) in a scratch directory."""
    # what regrtest does: no network of the world, nothing huge
    vars(importlib.import_module("test.support"))["use_resources"] = [
        "cpu",
        "subprocess",
        "decimal",
        "walltime",
    ]
    out = os.open(result, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o644)
    with tempfile.TemporaryDirectory() as scratch:
        os.chdir(scratch)
        outcomes = _Outcomes(out)
        try:
            suite = unittest.defaultTestLoader.loadTestsFromName(f"test.{module}")
        except unittest.SkipTest as skipped:
            os.write(out, (json.dumps([module, "skipped", str(skipped)]) + "\n").encode())
        else:
            unittest.TestSuite(_pick(suite, set(chosen))).run(outcomes)
        os.chdir("/")
    os.write(out, (json.dumps(["", "ended", ""]) + "\n").encode())


def _pick(suite: unittest.TestSuite, chosen: set[str]) -> list[unittest.TestCase]:
    """Return the tests in order; a suite of a module's or a class's own is opened up."""
    found: list[unittest.TestCase] = []
    for test in suite:
        if isinstance(test, unittest.TestSuite):
            found += _pick(test, chosen)
        elif _LEFT_OUT not in test.id() and (not chosen or test.id() in chosen):
            found.append(test)
    return found


if __name__ == "__main__":
    main(*sys.argv[1:])
