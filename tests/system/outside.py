"""A small internet in a network namespace of its own, and agents that are run in reach of it."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system import outside_world
from tests.system.conftest import Person
from tests.system.outside_world import NAMESERVER

WORLD = Path(outside_world.__file__)
SETUP = """
set -e
mount --bind "$1/resolv.conf" /etc/resolv.conf
mount --bind "$1/hosts" /etc/hosts
ip link set lo up
shift
for address; do ip addr add "$address" dev lo; done
echo ready
exec cat
"""


class Outside:
    """A network namespace with a small internet in it."""

    def __init__(self, place: Path) -> None:
        self.web = place / "web"
        self.web.mkdir()
        (self.web / "hello.txt").write_text("hello from the world\n")
        (place / "resolv.conf").write_text(f"nameserver {NAMESERVER}\n")
        (place / "hosts").write_text(outside_world.HOSTS)
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "private", "sh", "-c", SETUP, "sh",
             str(place), *outside_world.ADDRESSES],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.enter = (
            "nsenter", f"--net=/proc/{self._holder.pid}/ns/net",
            f"--mount=/proc/{self._holder.pid}/ns/mnt",
        )  # fmt: skip
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == "ready\n"
        self._world = subprocess.Popen(
            [*self.enter, sys.executable, str(WORLD), str(self.web)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=WORLD.parents[2],
        )  # fmt: skip
        assert self._world.stdout is not None
        assert self._world.stdout.readline() == "ready\n"

    def seen(self) -> dict[str, list[str]]:
        """What has reached the world up to now, by place."""
        assert self._world.stdin is not None
        assert self._world.stdout is not None
        self._world.stdin.write("?\n")
        self._world.stdin.flush()
        found: dict[str, list[str]] = json.loads(self._world.stdout.readline())
        return found

    def stop(self) -> None:
        for process in (self._world, self._holder):
            process.kill()
            process.communicate()


@pytest.fixture
def outside(person: Person) -> Iterator[Outside]:
    """The world, which the person's commands are run in."""
    if os.geteuid() != 0:
        pytest.skip("not root: no network namespace to make a world in")
    place = Path(tempfile.mkdtemp(prefix="safeclaw-world-"))
    place.chmod(0o755)
    world = Outside(place)
    person.within = (*world.enter, f"--wdns={person.workspace}")
    yield world
    world.stop()
    shutil.rmtree(place)


def policy(*rules: str) -> str:
    own = "".join(f"  - {{{rule}}}\n" for rule in rules)
    return f"""\
version: "1.0"
rules:
{own}  - {{action: file, path: ["**", "/tmp/**"], effect: allow}}
  - {{action: shell.execute, command: ["/usr/** *", "/bin/** *"], effect: allow}}
  - {{action: "*", effect: deny}}
"""


def run(
    person: Person, rules: tuple[str, ...], agent: str, *options: str
) -> subprocess.CompletedProcess[str]:
    """Run a Python agent under the rules."""
    chosen = person.write("policy.yaml", policy(*rules))
    person.write("agent.py", "import errno, json, os, socket, sys, threading\n" + agent)
    return person.safeclaw(
        "run", "--policy", str(chosen), *options, "--", "/usr/bin/python3", "agent.py"
    )


ALLOW_GOOD = "action: network, host: ['*.good.test', good.test], effect: allow"
TRY = """
def attempt(call):
    try:
        return call()
    except OSError as problem:
        return errno.errorcode.get(problem.errno, str(problem.errno))

def fetch(host, port=80, family=0):
    def work():
        with socket.create_connection((host, port), 20) as sock:
            return sock.recv(100).decode()
    return attempt(work)
"""
