"""What was ignored when safeclaw was started is ignored by the agent, as execve(2) has it."""

from __future__ import annotations

import os
import signal

import pytest

from tests.system.conftest import Person

#: Runs safeclaw, and hangs up on it at a moment of its launch that a test cannot hit from outside.
AT_LAUNCH = """
import os, signal, sys, threading
from safeclaw.daemon.cli import main as cli
from safeclaw.sandbox import session

moment = sys.argv.pop(1)
launch, wait = session.launch, session.Session.wait

def hang_up():
    signal.pthread_kill(threading.get_ident(), signal.SIGHUP)

def hang_up_once_it_waits():
    asleep = 0  # times in a row; between two of them the main thread could have gone on
    while asleep < 100:
        with open(f"/proc/self/task/{os.getpid()}/stat") as stat:
            asleep = asleep + 1 if ") S " in stat.read() else 0
    hang_up()

def launched(*given):
    if moment == "before":
        hang_up()
    made = launch(*given)
    if moment == "after":
        hang_up()
    return made

def waited(*given):
    if moment == "while":
        # taken by another thread, it does not interrupt what blocks the main one
        threading.Thread(target=hang_up_once_it_waits).start()
    return wait(*given)

session.launch, session.Session.wait = launched, waited
sys.exit(cli.main())
"""

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


@pytest.mark.parametrize("moment", ["before", "after", "while"])
def test_a_hangup_while_the_agent_is_started_ends_it(person: Person, moment: str) -> None:
    os.mkfifo(person.workspace / "go")
    (person.workspace / "go").chmod(0o666)
    driver = person.write("driver.py", AT_LAUNCH)
    python, _, _, *words = person.command("run", "--", "/bin/sh", "-c", "read -r go <go; echo on")
    done = person.finish(person.start([python, str(driver), moment, *words], person.workspace))
    assert (done.returncode, done.stdout) == (129, ""), done.stderr
    ended = person.safeclaw("audit", "show", "--type", "session_end", "--json").stdout
    assert "stopped by SIGHUP" in ended
