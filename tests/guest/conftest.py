"""What is run on a machine that a test has booted: see tests/deploy/emulated.py."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Person, ordinary_user, person, shared_tree

__all__ = ["ordinary_user", "person", "shared_tree"]

if "SAFECLAW_RESULTS" not in os.environ:
    collect_ignore_glob = ["test_*.py"]

CGROUPS = Path("/sys/fs/cgroup")


class Delegate:
    """Somebody whose commands run in a cgroup that systemd has delegated to them."""

    def __init__(self, person: Person, how: str) -> None:
        self.person = person
        own = [f"HOME=/home/{person.name}" if person.name != "root" else "HOME=/root"]
        own += [f"XDG_STATE_HOME={person.state}", "LANG=C.UTF-8"]
        run = ["systemd-run", "--quiet", "--collect", "--property=Delegate=yes"]
        become: list[str] = []
        if how == "service":
            run += ["--pipe", "--wait", f"--uid={person.name}"]
        elif person.name == "root":
            run += ["--scope"]
        else:
            run += ["--scope", "--user"]
            own.append(f"XDG_RUNTIME_DIR=/run/user/{person.uid}")
            become = ["runuser", "-u", person.name, "--"]
        where = f"--working-directory={person.workspace}"
        self._before = [*become, "env", *own, *run, where, "--", "env", *own]

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """Start ``safeclaw ARGUMENTS…`` in the workspace, with pipes to its standard streams."""
        return subprocess.Popen(
            [*self._before, *self.person.program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )


def sessions() -> set[Path]:
    """Return the cgroups of sessions that there are."""
    return {path for path in CGROUPS.rglob("safeclaw-*-*") if path.is_dir()}


@pytest.fixture(params=["scope", "service"])
def delegate(request: pytest.FixtureRequest, person: Person) -> Iterator[Delegate]:
    """A scope of the person's own manager (root: the system's), or a service with ``User=``."""
    before = sessions()
    yield Delegate(person, request.param)
    assert sessions() == before, "a session has left its cgroup"
