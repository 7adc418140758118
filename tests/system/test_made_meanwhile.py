"""A file that comes to be where one was to be made is not taken for it."""

from __future__ import annotations

import os
import re

import pytest

from tests.system.conftest import Person, fields, options_here

POLICY = """\
version: "1.0"
rules:
  - {{action: file.write.create, path: once/new, effect: ask}}
  - {{action: file.write.modify, path: "once/**", effect: {effect}}}
  - {{action: [file.read, file.write], path: "**", effect: allow}}
  - {{action: shell.execute, effect: allow}}
"""
AGENT = """\
import os, threading

def make():
    try:
        open("once/new", "w").write("changed")
    except OSError as problem:
        print(problem, flush=True)

maker = threading.Thread(target=make)
maker.start()
open("asked").read()  # waits until the test has seen the question
os.link("kept", "once/new")
print("linked", flush=True)
maker.join()
"""


@pytest.mark.parametrize("effect", ["deny", "allow"])
@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_who_may_make_a_file_may_not_change_one(
    person: Person, isolation: str, effect: str
) -> None:
    """The approval is what keeps the check and the act apart, for as long as it takes."""
    person.write("policy.yaml", POLICY.format(effect=effect))
    person.write("agent.py", AGENT)
    kept = person.write("kept", "kept")
    (person.workspace / "once").mkdir()
    os.mkfifo(person.workspace / "asked")
    person.own()
    command = ("run", "--no-prompt", "--policy", "policy.yaml", *options_here(isolation))
    with person.popen(*command, "--", "/usr/bin/python3", "agent.py") as running:
        assert running.stdout is not None
        assert running.stderr is not None
        for line in running.stderr:
            if waiting := re.search(r"waiting for approval ([0-9a-f]+)", line):
                break
        else:
            pytest.fail("nobody was asked")
        (person.workspace / "asked").write_text("")
        assert running.stdout.readline() == "linked\n"
        approved = person.safeclaw("approvals", "approve", waiting[1])
        assert approved.returncode == 0, approved.stderr
        said, _ = running.communicate()
    # the control: where files may be changed, the same attempt reaches it
    assert kept.read_text() == ("changed" if effect == "allow" else "kept")
    assert ("Permission denied" in said) == (effect == "deny")
    denied = person.records("--action", "file.write.modify", "--decision", "deny")
    assert [fields(one["target"])["path"] for one in denied] == (
        [] if effect == "allow" else [str(person.workspace / "once/new")]
    )
