"""What a person sees of denials while an agent runs: a line each, or with -q their number."""

from __future__ import annotations

import re
import shlex

import pytest

from tests.system.conftest import Person

SCRIPT = "cat secrets/token; cat secrets/token; cat <secrets/other; true"
LINE = (
    r"safeclaw: denied file\.read /\S+/secrets/\w+ \[default:\d+\] .+; to allow: - \{action: .+\}"
)


@pytest.mark.parametrize("word", ["-q", "--quiet"])
def test_quiet_keeps_denials_off_the_screen_and_counts_them(person: Person, word: str) -> None:
    for name in ("token", "other"):
        person.write(f"secrets/{name}", "secret\n")
    loud = person.safeclaw("run", "--", "sh", "-c", SCRIPT)
    lines = [line for line in loud.stderr.splitlines() if line.startswith("safeclaw: ")]
    assert [bool(re.fullmatch(LINE, line)) for line in lines] == [True, True], loud.stderr

    quiet = person.safeclaw("run", word, "--", "sh", "-c", SCRIPT)
    assert quiet.returncode == 0
    (line,) = [line for line in quiet.stderr.splitlines() if line.startswith("safeclaw: ")]
    said = re.fullmatch(r"safeclaw: attempts denied: 3; safeclaw (audit show .+)", line)
    assert said is not None, line
    assert len(person.records(*said[1].split()[2:])) == 3

    nothing = person.safeclaw("run", word, "--", "true")
    assert (nothing.returncode, nothing.stderr) == (0, "")


def test_an_agent_that_hides_its_letters_does_not_hide_the_number(person: Person) -> None:
    person.write("secrets/token", "secret\n")
    person.write("agent.sh", "cat secrets/token; printf '\\033[8m\\033[?1049h'\n")
    command = shlex.join(person.command("run", "-q", "--", "sh", "agent.sh"))
    done = person.finish(person.start(["script", "-qefc", command, "/dev/null"], person.workspace))
    hidden = done.stdout.index("\x1b[8m\x1b[?1049h")
    shown = done.stdout.index("safeclaw: attempts denied: 1;")
    between = done.stdout[hidden:shown]  # read as text: \r is \n
    assert between.endswith("\x1b[?1047l\x1b[0m\x0f\x1b(B\x1b[?25h\n\x1b[K")


def test_an_agent_that_has_stopped_the_terminal_does_not_hide_the_number(person: Person) -> None:
    person.write("secrets/token", "secret\n")
    stop = "import fcntl, termios; fcntl.ioctl(1, termios.TCXONC, termios.TCOOFF)"
    person.write("agent.sh", f"cat secrets/token; exec /usr/bin/python3 -IS -c '{stop}'\n")
    command = shlex.join(person.command("run", "-q", "--", "sh", "agent.sh"))
    done = person.finish(person.start(["script", "-qefc", command, "/dev/null"], person.workspace))
    assert "safeclaw: attempts denied: 1;" in done.stdout
