"""What a rule refuses by a name that is a link is refused where the link leads."""

from __future__ import annotations

import os

import pytest

from tests.system.conftest import Person, options_here

DENIED = """\
  - {action: file.read, path: ".ssh/**", effect: deny}
  - {action: file.write, path: "kept/inner/**", effect: deny}
  - {action: shell.execute, command: "./tools/remove *", effect: deny}
"""
POLICY = """\
version: "1.0"
rules:
%s  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
AGENT = """\
for name in .ssh/key dotfiles/ssh/key; do cat $name; done
mv place/inner place/elsewhere && echo moved
for name in tools/remove programs/remove-all; do ./$name; done
"""


@pytest.mark.parametrize("rules", ["", DENIED], ids=["nothing-denied", "denied"])
def test_a_denial_holds_where_the_link_in_it_leads(person: Person, rules: str) -> None:
    person.write("policy.yaml", POLICY % rules)
    person.write("dotfiles/ssh/key", "secret\n")
    person.write("place/inner/file", "")
    person.write("programs/remove-all", "#!/bin/sh\necho removing\n", 0o755)
    (person.workspace / "tools").mkdir()
    for link, leads in (
        (".ssh", "dotfiles/ssh"),
        ("kept", "place"),
        ("tools/remove", "../programs/remove-all"),
    ):
        os.symlink(leads, person.workspace / link)
    person.own()
    done = person.safeclaw(
        "run", "--policy", "policy.yaml", *options_here(), "--", "/bin/sh", "-c", AGENT
    )
    everything = "secret\nsecret\nmoved\nremoving\nremoving\n"
    assert done.stdout == ("" if rules else everything), done.stderr


TURN = "for name in .ssh kept; do rm $name; ln -s /nowhere $name; done"
LOOK = "cat dotfiles/ssh/key; echo more >> place/inner/file"


@pytest.mark.parametrize("who", ["agent", "person"])
@pytest.mark.parametrize("isolation", ["full", "landlock"])
def test_the_link_that_a_denial_is_named_by_is_not_the_agents_to_turn(
    person: Person, isolation: str, who: str
) -> None:
    person.write("policy.yaml", POLICY % DENIED)
    person.write("dotfiles/ssh/key", "secret\n")
    kept = person.write("place/inner/file", "")
    for link, leads in ((".ssh", "dotfiles/ssh"), ("kept", "place")):
        os.symlink(leads, person.workspace / link)
    person.own()
    run = ("run", "--policy", "policy.yaml", *options_here(isolation), "--", "/bin/sh", "-c")
    if who == "agent":
        person.safeclaw(*run, TURN)
    else:  # the control: once they are turned, the next session reaches what lies there
        person.finish(person.start(["/bin/sh", "-c", TURN], person.workspace))
    done = person.safeclaw(*run, LOOK)
    assert done.stdout == ("" if who == "agent" else "secret\n"), done.stderr
    assert kept.read_text() == ("" if who == "agent" else "more\n")
