"""A second name for a file opens no way round a rule on what may be done to it."""

from __future__ import annotations

import os

import pytest

from tests.system.conftest import Person, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: [file.write.modify, file.write.metadata], path: "locked/**", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
AGENT = """\
import os, sys

def attempt(deed):
    try:
        deed()
    except OSError as problem:
        print(problem, file=sys.stderr)

if "agent" in sys.argv:
    attempt(lambda: os.link("locked/file", "free/file"))
attempt(lambda: open("free/file", "w").write("changed"))
attempt(lambda: os.chmod("free/file", 0o600))
"""


@pytest.mark.parametrize("who", ["agent", "person"])
@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_what_is_refused_by_one_name_is_not_had_by_another(
    person: Person, isolation: str, who: str
) -> None:
    person.write("policy.yaml", POLICY)
    person.write("agent.py", AGENT)
    file = person.write("locked/file", "kept")
    (person.workspace / "free").mkdir()
    if who == "person":  # the control: with the name there already, the same deeds arrive
        os.link(file, person.workspace / "free/file")
    person.own()
    command = ("run", "--policy", "policy.yaml", *options_here(isolation))
    done = person.safeclaw(*command, "--", "/usr/bin/python3", "agent.py", who)
    assert done.returncode == 0, done.stderr
    found = (file.read_text(), file.stat().st_mode & 0o777)
    assert found == (("kept", 0o644) if who == "agent" else ("changed", 0o600))
