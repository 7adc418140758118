"""The registered agent demo, at work under the system's broker and its policy."""

from __future__ import annotations

import subprocess
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import pytest

from tests.system.conftest import Person
from tests.system.system_broker import Making, Pace, SystemBroker, brokers, group_of

DEMO = """\
version: "1.0"
rules:
  - {action: file.write, path: "asked/**", effect: ask, reason: "a person looks at it"}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
STEPS = """\
import itertools, os, sys
said = os.open("fifo", os.O_WRONLY)
for number in itertools.count():
    try:
        open(f"made-{number}", "x").close()
    except PermissionError as problem:
        print("refused", flush=True)
        os.write(said, b"-")
        if "stop" in sys.argv:
            sys.exit(9)
    else:
        os.write(said, b".")
"""


@pytest.fixture
def making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), DEMO) as make:
        yield make


@pytest.fixture
def member(person: Person) -> Person:
    """Somebody who may start sessions: root, and an ordinary user of the group."""
    return person


@contextmanager
def pace_of(person: Person) -> Generator[Pace]:
    person.write("steps.py", STEPS)
    pace = Pace(person.workspace / "fifo", person.name)
    try:
        yield pace
    finally:
        pace.close()


@contextmanager
def at_work(
    broker: SystemBroker, person: Person, key: str, *more: str, isolation: str = "full"
) -> Generator[tuple[Pace, subprocess.Popen[str]]]:
    """Have the agent demo make steps."""
    options = ("--isolation", isolation, "--agent", "demo")
    words = (*options, "--", "/usr/bin/python3", "steps.py", *more)
    with pace_of(person) as pace, broker.run(person, *words, key=key) as running:
        yield pace, running
