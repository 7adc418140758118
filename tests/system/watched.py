"""A system's broker that an operator watches, and an agent that it refuses."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from typing import Any, cast

import pytest
from prometheus_client.openmetrics import parser

from tests.system.conftest import Person
from tests.system.system_broker import Making, SystemBroker, brokers, group_of

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: ["made*", "*.py", "said"], effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
  - {action: "*", effect: deny}
"""
DENIED = """\
for number in range(5):
    try:
        open("/etc/passwd", "a")
    except OSError:
        pass
open("made", "w").close()
"""


@pytest.fixture
def making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), POLICY) as make:
        yield make


def run(broker: SystemBroker, person: Person, *words: str) -> subprocess.Popen[str]:
    policy = str(broker.config / "policies" / "demo.yaml")
    return broker.run(person, "--policy", policy, "--", *words)


def denied(broker: SystemBroker, person: Person) -> None:
    """Have an agent be refused five times."""
    person.write("denied.py", DENIED)
    ran = person.finish(run(broker, person, "/usr/bin/python3", "denied.py"))
    assert ran.returncode == 0, ran.stderr


def curl(broker: SystemBroker, path: str = "/metrics", **user: Any) -> tuple[int, str]:
    """Read as an operator does; return the HTTP status and the text."""
    done = subprocess.run(
        [
            *("curl", "-sS", "--max-time", "30", "-w", "\n%{http_code}"),
            *("--unix-socket", str(broker.socket.parent / "metrics.sock")),
            f"http://localhost{path}",
        ],
        capture_output=True, text=True, check=True, **user,
    )  # fmt: skip
    text, _, status = done.stdout.rpartition("\n")
    return int(status), text


def samples(text: str) -> dict[str, float]:
    """Return what the reference parser reads, by name and labels."""
    families: Any = cast("Any", parser).text_string_to_metric_families(text)
    return {
        sample.name + "".join(f",{k}={v}" for k, v in sorted(sample.labels.items())): sample.value
        for family in families
        for sample in family.samples
    }
