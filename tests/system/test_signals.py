"""What was ignored when safeclaw was started is ignored by the agent, as execve(2) has it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.system.conftest import Person

SHOW = ("/usr/bin/grep", "SigIgn", "/proc/self/status")


def started(person: Person, ignored: str, *command: str) -> list[str]:
    """Return the command that starts another one with some signals ignored."""
    return ["/usr/bin/env", f"--ignore-signal={ignored}", *command]


@pytest.mark.parametrize("isolation", ["full", "landlock"])
@pytest.mark.parametrize("ignored", ["HUP", "INT,QUIT", "TERM,USR1,CHLD,TTOU"])
def test_the_agent_ignores_what_its_caller_ignored(
    person: Person, isolation: str, ignored: str
) -> None:
    found: list[str] = []
    for words in ((), person.command("run", "--isolation", isolation, "--")):
        command = started(person, ignored, *words, *SHOW)
        done = person.finish(person.start(command, person.workspace))
        assert done.returncode == 0, done.stderr
        found.append(done.stdout)
    outside, inside = (int(line.split()[1], 16) for line in found)
    assert inside == outside
    for name in ignored.split(","):
        assert inside & 1 << signal.Signals[f"SIG{name}"] - 1


@pytest.mark.parametrize("ignored", [True, False])
def test_who_is_started_with_nohup_survives_a_hangup(person: Person, ignored: bool) -> None:
    os.mkfifo(person.workspace / "go")
    (person.workspace / "go").chmod(0o666)
    command = person.command("run", "--", "/bin/sh", "-c", "echo ready; read -r go <go; echo on")
    if ignored:
        command = started(person, "HUP", *command)
    running = person.start(command, person.workspace)
    assert running.stdout is not None
    assert running.stdout.readline() == "ready\n"
    running.send_signal(signal.SIGHUP)
    if ignored:
        with (person.workspace / "go").open("w") as go:
            go.write("on\n")
    done = person.finish(running)
    assert (done.returncode, done.stdout) == ((0, "on\n") if ignored else (129, ""))
