"""A system's broker under the two-person rule, and its two administrators, who are not root."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from safeclaw.daemon.cli.main import main
from tests.system.system_broker import Making, SystemBroker, as_somebody, brokers, group_of

#: A group that nobody is in, and two users that nobody is; every Debian has them.
NEWS = 9
ANN, BOB = 1, 2
DEMO = """\
version: "1.0"
rules:
  - {action: file.write, path: "later/**", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
"""
WIDE = DEMO.replace("later/**", "elsewhere/**")


@pytest.fixture
def making(ordinary_user: str) -> Iterator[Making]:
    with brokers(group_of(ordinary_user), DEMO) as make:
        yield make


def ruled(making: Making, ordinary_user: str, *, on: bool = True) -> SystemBroker:
    """Start a broker with two administrators, and the rule; demo is in force, and registered."""
    groups = {"run": group_of(ordinary_user), "admin": "news", "audit": "uucp"}
    broker = making(groups=groups)
    broker.settings["groups"] = groups
    broker.ask("agent", "add", "demo", "--policy", "demo", "--owner", "o", "--environment", "e")
    broker.configure({**broker.settings, "require_approval": on})
    broker.stop()
    broker.start()
    return broker


def as_admin(broker: SystemBroker, uid: int, *words: str) -> int:
    """Run ``safeclaw WORDS…`` as an administrator who is not root; return its status."""
    status = as_somebody(
        uid, [NEWS], lambda: main([*words, "--broker", str(broker.socket), "--json"])
    )
    assert isinstance(status, int)
    return status


def in_force(broker: SystemBroker) -> str:
    return str(broker.reload()["in_force"]["demo"])
