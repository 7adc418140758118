"""Limits of the session as a whole, held by the cgroup that systemd has delegated."""

from __future__ import annotations

from pathlib import Path

from tests.guest.conftest import CGROUPS, Delegate, sessions
from tests.system.conftest import Person, fields
from tests.system.test_resources import limits

RULES = """\
rules:
  - {action: [file.read, file.write], path: ["**", "/usr/**", "/lib*/**", "/etc/**"],
     effect: allow}
  - {action: shell.execute, effect: allow}
"""


def command(person: Person, resources: str, agent: str) -> tuple[str, ...]:
    """Return the arguments of a run of a Python agent within limits."""
    policy = f'version: "1.0"\nresources: {{{resources}}}\n{RULES}'
    chosen = person.write("policy.yaml", policy)
    person.write("agent.py", agent)
    options = ("--allow-degraded", "landlock-abi", "--grace", "60", "--policy", str(chosen))
    return ("run", *options, "--", "/usr/bin/python3", "agent.py")


def run(delegate: Delegate, resources: str, agent: str) -> tuple[int, str, str]:
    """Run it; return the status, and what it said."""
    process = delegate.start(*command(delegate.person, resources, agent))
    out, err = process.communicate()
    return process.returncode, out, err


def walls(person: Person) -> dict[str, object]:
    """Return what the session's first record says of the walls."""
    start = person.records("--type", "session_start")[-1]
    return fields(fields(start["detail"])["walls"])


EATS = "open('began', 'w')\nheld = bytearray(256 << 20)\nprint('held')\n"


def test_memory_beyond_the_limit_is_not_had(delegate: Delegate) -> None:
    status, out, err = run(delegate, "file_size: 1G", EATS)
    assert (status, out) == (0, "held\n"), err
    status, out, err = run(delegate, "memory: 128M", EATS)
    assert (status, out) == (128 + 9, ""), err
    assert "memory" in err
    person = delegate.person
    assert (person.workspace / "began").exists()
    assert limits(person) == ["memory"]
    assert walls(person)["resources"] == ["memory: 134217728 bytes, cgroup memory.max"]


# each holds less than the limit: one that holds single processes would not see it
TOGETHER = """\
import os, signal
children = []
for _ in range(6):
    ready, say = os.pipe()
    child = os.fork()
    if not child:
        held = bytearray(48 << 20)
        os.write(say, b'+')
        signal.pause()
    os.close(say)
    os.read(ready, 1)  # it has them, or is gone
    children.append(child)
for child in children:
    os.kill(child, 15)
print([os.waitpid(child, 0)[1] for child in children].count(9))
"""


def test_memory_is_that_of_all_processes_together(delegate: Delegate) -> None:
    status, out, err = run(delegate, "file_size: 1G", TOGETHER)
    assert (status, out) == (0, "0\n"), err
    status, out, err = run(delegate, "memory: 128M", TOGETHER)
    assert status == 0, err
    assert 4 <= int(out) < 6
    assert limits(delegate.person) == ["memory"]


FORKS = """\
import os, signal
made = []
try:
    while len(made) < 300:
        child = os.fork()
        if not child:
            signal.pause()
            os._exit(0)
        made.append(child)
except OSError as problem:
    print(problem.errno, end=' ')
print(len(made))
for child in made:
    os.kill(child, 9)
"""


def test_a_storm_of_forks_meets_the_sessions_own_limit(delegate: Delegate) -> None:
    status, out, err = run(delegate, "file_size: 1G", FORKS)
    assert (status, out) == (0, "300\n"), err
    status, out, err = run(delegate, "processes: 20", FORKS)
    assert (status, out) == (0, "11 19\n"), err  # EAGAIN
    assert limits(delegate.person) == ["processes"]


# works for a second of its own time, then waits to be told to end
BURNS = """\
import sys, time
until = time.process_time() + 1
while time.process_time() < until:
    pass
print('worked', flush=True)
sys.stdin.read()
"""


def throttled(group: Path) -> int:
    """Return how often the kernel has held a cgroup back."""
    for line in (group / "cpu.stat").read_text().splitlines():
        name, _, value = line.partition(" ")
        if name == "nr_throttled":
            return int(value)
    return 0


def test_a_session_has_its_share_of_the_processor(delegate: Delegate) -> None:
    person = delegate.person
    for resources, held in (("memory: 1G", False), ("memory: 1G, cpu: 25%", True)):
        process = delegate.start(*command(person, resources, BURNS))
        assert process.stdout is not None
        assert process.stdout.readline() == "worked\n"
        (group,) = sessions()
        assert str(group) == walls(person)["cgroup"]
        assert group.is_relative_to(CGROUPS)
        assert bool(throttled(group)) is held
        _, err = process.communicate()
        assert process.returncode == 0, err
        assert ("cpu" in err) is held
    assert limits(person) == ["cpu"]
