"""What an agent is started with: it has that as it was handed over, and no more."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.system.conftest import Person, options_here

AGENT = """
import json, os
def attempt(work):
    try:
        return work()
    except OSError as problem:
        return problem.strerror
print(json.dumps({
    "read": attempt(lambda: os.read(os.open("/proc/self/fd/0", os.O_RDONLY), 100).decode()),
    "mode": attempt(lambda: os.fchmod(0, 0o666)),
    "write": attempt(lambda: os.write(os.open("/proc/self/fd/0", os.O_RDWR | os.O_TRUNC), b"x")),
    "log": attempt(lambda: os.read(os.open("/proc/self/fd/2", os.O_RDONLY), 100).decode()),
}))
"""
#: The supervisor with the defence off: a path is believed wherever it is one.
BELIEVED = """
import sys
from safeclaw.daemon.cli.main import main
from safeclaw.sandbox import resolve
resolve.Resolver._is_here = lambda *_: True
sys.exit(main())
"""


def _run(person: Person, given: Path, log: str) -> dict[str, object]:
    given.write_text("given to be read")
    given.chmod(0o600)
    person.own()
    person.write("agent.py", AGENT)
    command = ("run", *options_here(), "--no-prompt", "--", "/usr/bin/python3", "-IS", "agent.py")
    done = person.finish(person.popen(*command, redirect=f"< {given} {log}"))
    assert done.returncode == 0, done.stderr
    found: dict[str, object] = json.loads(done.stdout)
    return found


def test_a_file_of_the_hosts_tmp_is_not_taken_for_one_of_the_sessions(person: Person) -> None:
    given = person.base / "given"  # below /tmp, as a log or a document often is
    if not str(given).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    log = person.base / "log"
    log.write_text("of somebody before")
    denied = os.strerror(13)
    found = _run(person, given, f"2>> {log}")
    assert found == {"read": "given to be read", "mode": denied, "write": denied, "log": denied}
    assert (given.read_text(), given.stat().st_mode & 0o777) == ("given to be read", 0o600)

    driver = person.base / "driver.py"
    driver.write_text(BELIEVED)
    person.program[1:] = [str(driver)]
    found = _run(person, given, f"2>> {log}")
    assert (given.read_text(), given.stat().st_mode & 0o777) == ("x", 0o666)
    assert str(found["log"]).startswith("of somebody before")


def test_a_link_of_the_agents_does_not_make_it_one(person: Person) -> None:
    given = person.base / "kept" / "given"
    if not str(given).startswith("/tmp/"):
        pytest.skip("pytest's directories are not below /tmp")
    given.parent.mkdir()
    given.write_text("given to be read")
    person.own()
    person.write("given", "of the workspace: the same device, under the same name by a link")
    person.write(
        "agent.py",
        "import os\n"
        f"os.symlink({str(person.workspace)!r}, {str(given.parent)!r})\n"
        f"print(os.path.exists({str(given)!r}), flush=True)\n"
        "try:\n"
        "    os.write(os.open('/proc/self/fd/0', os.O_RDWR | os.O_TRUNC), b'x')\n"
        "except PermissionError:\n"
        "    print('denied')\n",
    )
    command = ("run", *options_here(), "--no-prompt", "--", "/usr/bin/python3", "-IS", "agent.py")
    done = person.finish(person.popen(*command, redirect=f"< {given}"))
    assert done.stdout.split() == ["True", "denied"], done.stderr
    assert given.read_text() == "given to be read"


def test_the_other_end_of_a_pipe_is_not_had(person: Person) -> None:
    person.write(
        "agent.py",
        "import os\n"
        "for number, flags in ((0, os.O_WRONLY), (2, os.O_RDONLY), (0, os.O_RDWR)):\n"
        "    try:\n"
        "        print(os.open(f'/proc/self/fd/{number}', flags | os.O_NONBLOCK))\n"
        "    except PermissionError:\n"
        "        print('denied')\n"
        "print(os.read(os.open('/dev/stdin', os.O_RDONLY), 100))\n"
        "os.write(os.open('/dev/stderr', os.O_WRONLY), b'said')\n",
    )
    safeclaw = ["run", *options_here(), "--no-prompt", "--", "/usr/bin/python3", "-IS", "agent.py"]
    command = ["sh", "-c", 'echo in | "$@" 2>&1 >out | cat', "sh"]
    done = person.finish(person.start([*command, *person.command(*safeclaw)], person.workspace))
    assert "said" in done.stdout, done.stdout
    said = (person.workspace / "out").read_text()
    assert said.split() == ["denied", "denied", "denied", "b'in\\n'"]
