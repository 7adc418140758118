"""A link that one session makes gives the next one nothing of the host."""

from __future__ import annotations

import os
import shutil

import pytest

from tests.system.conftest import ROOT, Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: What an earlier session leaves: a script that is a link, and a python3 to be started with it.
LEAVE = """\
mkdir -p bin; printf '#!/bin/sh\\ncat "$1"\\n' >bin/python3; chmod +x bin/python3
rm -f main.py; ln -s %s main.py
"""


@pytest.mark.parametrize("isolation", ["full", "landlock"])
@pytest.mark.parametrize("where", ["outside", "inside"])
def test_a_script_that_is_a_link_is_read_in_the_workspace_only(
    person: Person, isolation: str, where: str
) -> None:
    person.write("policy.yaml", POLICY)
    inside = person.write("src/words", "words\n")
    outside = person.base / "words"
    outside.write_text("words\n")
    person.own()
    run = ("run", "--policy", "policy.yaml", *options_here(isolation), "--")
    leads = inside if where == "inside" else outside
    person.safeclaw(*run, "/bin/sh", "-c", LEAVE % leads)
    path = f"{person.workspace}/bin:/usr/bin:/bin"
    done = person.safeclaw(*run, "main.py", PATH=path)
    assert done.stdout == ("words\n" if where == "inside" else ""), done.stderr


NAMED = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: ["git *", "ln *", "mkdir *"], effect: allow}
"""


@pytest.mark.parametrize("who", ["agent", "person"])
def test_no_other_program_goes_by_the_name_of_an_allowed_one(person: Person, who: str) -> None:
    policy = person.base / "named.yaml"
    policy.write_text(NAMED)
    ours = person.base / "bin"  # where the agent makes no links
    place = person.workspace / "bin" if who == "agent" else ours
    ours.mkdir()
    (ours / "git").symlink_to("/usr/bin/git")
    person.own()
    path = f"{place}:/usr/bin:/bin"
    run = ("run", "--policy", str(policy), *options_here(), "--", "/bin/bash", "-c")
    if who == "agent":
        made = person.safeclaw(*run, "mkdir bin; ln -s /usr/bin/env bin/git")
        assert made.returncode == 0, made.stderr
    program = "/usr/bin/env" if who == "agent" else "/usr/bin/git"
    done = person.safeclaw(*run, f"exec -a git {program} --version", PATH=path)
    assert ("version" in done.stdout) is (who == "person"), done.stderr


PLACE = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "out/**", effect: allow}
  - {action: shell.execute, command: ["stat *", "ln *", "rmdir *"], effect: allow}
"""


@pytest.mark.parametrize("defence", ["unturned", ""])
def test_where_a_link_in_the_workspace_leads_is_not_in_the_view(
    person: Person, defence: str
) -> None:
    policy = person.base / "place.yaml"
    policy.write_text(PLACE)
    outside = person.base / "outside"
    outside.mkdir()
    (outside / "key").write_text("secret\n")
    (person.workspace / "out").mkdir()
    person.own()
    if defence:
        weakened = person.base / "weakened.py"
        shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
        weakened.chmod(0o644)
        person.program = [person.program[0], str(weakened), defence]
    run = ("run", "--policy", str(policy), *options_here(), "--", "/bin/sh", "-c")
    look = f"stat -c %s {outside}/key"
    turned = person.safeclaw(*run, f"{look}; rmdir out && ln -s {outside} out")
    assert (turned.returncode, turned.stdout) == (0, ""), turned.stderr
    done = person.safeclaw(*run, look)
    assert done.stdout == ("7\n" if defence else ""), done.stderr


def test_a_link_that_leads_to_itself_keeps_no_session_from_starting(person: Person) -> None:
    policy = person.base / "place.yaml"
    policy.write_text(PLACE)
    os.symlink("again", person.workspace / "out")
    os.symlink("out", person.workspace / "again")
    person.own()
    done = person.safeclaw(
        "run", "--policy", str(policy), *options_here(), "--", "/bin/sh", "-c", "echo here"
    )
    assert (done.returncode, done.stdout) == (0, "here\n"), done.stderr
