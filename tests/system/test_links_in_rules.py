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
