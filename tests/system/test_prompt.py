"""The question on the terminal that a person shares with the agent (script(1) makes one)."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from collections.abc import Generator
from contextlib import contextmanager

from tests.system.conftest import Person, fields

_POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "asked", effect: ask}
  - {action: shell.execute, command: "echo *", effect: ask}
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
"""
#: Waits until something is typed, makes letters invisible and foreign, and then tries.
_AGENT = """\
import select, sys
print("ready", flush=True)
select.select([0], [], [])
print("\\x1b[8m\\x1b(0", end="", flush=True)
try:
    print("it says", open("asked").read(), flush=True)
except PermissionError:
    print("refused", flush=True)
"""


class _Terminal:
    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.seen = ""

    def until(self, text: str, after: str = "") -> None:
        """Read on until the terminal shows a text, behind another one."""
        assert self._process.stdout is not None
        while text not in self.seen.partition(after)[2] if after else text not in self.seen:
            more = os.read(self._process.stdout.fileno(), 4096).decode("utf-8", "replace")
            assert more, f"the end, without {text!r}:\n{self.seen}"
            self.seen += more

    def rest(self) -> None:
        """Read all that comes until the program has ended."""
        assert self._process.stdout is not None
        self.seen += self._process.stdout.read()

    def type(self, text: str) -> None:
        """Type a text and the return key."""
        assert self._process.stdin is not None
        os.write(self._process.stdin.fileno(), text.encode() + b"\n")


@contextmanager
def _terminal(person: Person, *command: str) -> Generator[_Terminal]:
    """Run an agent in a terminal of its own."""
    run = shlex.join(person.command("run", "--policy", "policy.yaml", "--", *command))
    with _started(person, run) as terminal:
        yield terminal


@contextmanager
def _started(person: Person, run: str) -> Generator[_Terminal]:
    person.stdin = subprocess.PIPE
    started = person.start(["script", "-qfec", run, "/dev/null"], person.workspace)
    person.stdin = subprocess.DEVNULL
    with started as process:
        try:
            terminal = _Terminal(process)
            yield terminal
            terminal.rest()
        except BaseException:
            process.kill()
            raise


def _prepare(person: Person) -> None:
    person.write("policy.yaml", _POLICY)
    person.write("asked", "something")
    person.write("agent.py", _AGENT)


def test_what_was_typed_before_the_question_is_no_answer(person: Person) -> None:
    _prepare(person)
    with _terminal(person, "/usr/bin/python3", "agent.py") as terminal:
        terminal.until("ready")
        terminal.type("y")
        terminal.until("[n]o: ")
        terminal.type("n")
        terminal.until("refused")
    assert "it says" not in terminal.seen
    (denied,) = [r for r in person.records("--decision", "deny") if r["rule"] == "policy:1"]
    assert fields(denied["target"])["path"] == str(person.workspace / "asked")


def test_yes_is_yes_and_the_question_can_be_read(person: Person) -> None:
    _prepare(person)
    with _terminal(person, "/usr/bin/python3", "agent.py") as terminal:
        terminal.until("ready")
        terminal.type("")
        terminal.until("[n]o: ")
        terminal.type("y")
        terminal.until("it says")
    # the agent's colours and letters end where the question begins
    hidden, question = terminal.seen.index("\x1b[8m"), terminal.seen.index("safeclaw: allow")
    between = terminal.seen[hidden:question]
    assert between.endswith("\x1b[0m\x0f\x1b(B\x1b[?25h\r\x1b[K")
    assert re.search(r"allow file\.read \S+/asked\? ", terminal.seen)


def test_words_are_shown_as_a_shell_would_take_them(person: Person) -> None:
    _prepare(person)
    with _terminal(
        person, "/usr/bin/sh", "-c", "echo ok; /usr/bin/echo 'a b; rm -rf c' d"
    ) as shown:
        shown.until("[n]o: ")
        shown.type("n")
    assert "allow shell.execute /usr/bin/echo 'a b; rm -rf c' d? " in shown.seen


def test_what_a_program_is_called_is_part_of_the_question(person: Person) -> None:
    _prepare(person)
    program = "import os; os.execv('/usr/bin/echo', ['rm', 'x\u3164y'])"
    with _terminal(person, "/usr/bin/python3", "-c", program) as shown:
        shown.until("[n]o: ")
        shown.type("n")
    assert r"allow shell.execute /usr/bin/echo 'x\xe3\x85\xa4y' (as rm)? " in shown.seen


def test_a_question_too_long_for_a_terminal_is_not_put_there(person: Person) -> None:
    _prepare(person)
    words = " ".join(["harmless"] * 200)
    with _terminal(person, "/usr/bin/sh", "-c", f"/usr/bin/echo {words} || true") as terminal:
        terminal.until("too long to be asked here")
        (found,) = re.findall(r"safeclaw approvals approve (\S+)", terminal.seen)
        denied = person.safeclaw("approvals", "deny", found)
        assert denied.returncode == 0, denied.stderr
    assert "[y]es" not in terminal.seen


_DENY = '  - {action: file.read, path: "denied", effect: deny}'
#: Puts itself before the terminal, has whoever else writes there stopped, and then tries.
_BEFORE = """\
import os, signal, sys, termios
signal.signal(signal.SIGTTOU, signal.SIG_IGN)
os.setpgid(0, 0)
os.tcsetpgrp(0, os.getpgrp())
settings = termios.tcgetattr(0)
settings[3] |= termios.TOSTOP
termios.tcsetattr(0, termios.TCSANOW, settings)
try:
    print("it says", open(sys.argv[1]).read(), flush=True)
except PermissionError:
    os._exit(3)
"""


def test_an_agent_before_the_terminal_has_nobody_stopped(person: Person) -> None:
    _prepare(person)
    person.write("denied", "something")
    person.write("policy.yaml", _POLICY.replace("rules:", f"rules:\n{_DENY}"))
    person.write("before.py", _BEFORE)
    words = ("run", "--policy", "policy.yaml", "--", "/usr/bin/python3", "before.py")
    # a shell with job control: else a write would fail, and stop nobody (setpgid(2), orphaned)
    for name in ("denied", "asked"):
        run = shlex.join(person.command(*words, name))
        script = shlex.join(["/bin/bash", "-c", f'set -m; {run}; echo "ended with $?"'])
        with _started(person, script) as terminal:
            if name == "asked":
                terminal.until("waiting for approval")
                terminal.until("\n", after="waiting for approval")
                found = re.search(r"safeclaw approvals approve (\w{6})", terminal.seen)
                assert found, terminal.seen
                answered = person.safeclaw("approvals", "deny", found[1])
                assert answered.returncode == 0, answered.stderr
            terminal.until("ended with ")
        assert "ended with 3" in terminal.seen, terminal.seen
