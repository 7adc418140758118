"""A policy that extends another holds a real run, and all its files are in force."""

from __future__ import annotations

import hashlib
from pathlib import Path

from tests.system.conftest import Person

OWN = """\
version: "1.0"
extends: shared/base.yaml
rules:
  - {action: file.write, path: "kept", effect: deny, reason: "kept as it is"}
"""
BASE = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: "*", effect: deny}
"""
AGENT = """\
for name in ("made", "kept", "own.yaml", "shared/base.yaml"):
    try:
        open(name, "w").write("by the agent")
        print("wrote", name)
    except PermissionError:
        print("refused", name)
"""


def test_parents_rule_and_are_out_of_the_agents_reach(person: Person) -> None:
    files = {name: person.write(name, text) for name, text in (
        ("own.yaml", OWN), ("shared/base.yaml", BASE), ("kept", "kept"), ("agent.py", AGENT),
    )}  # fmt: skip
    done = person.safeclaw("run", "--policy", "own.yaml", "--", "python3", "agent.py")
    assert done.returncode == 0, done.stderr
    assert done.stdout.split("\n")[0] == "wrote made"
    assert (person.workspace / "made").read_text() == "by the agent"
    assert files["kept"].read_text() == "kept"
    assert files["own.yaml"].read_text() == OWN
    assert files["shared/base.yaml"].read_text() == BASE

    lines = "".join(
        f"{hashlib.sha256(text.encode()).hexdigest()}  {name}\n"
        for text, name in ((OWN, "own"), (BASE, "base"))
    )
    expected = hashlib.sha256(lines.encode()).hexdigest()
    found = person.records("--type", "policy_load")
    assert [record["policy"]["sha256"] for record in found] == [expected]  # type: ignore[index]
    denied = {record["rule"] for record in person.records("--decision", "deny")}
    assert {"own:1", "protected"} <= denied


def test_a_mistake_in_a_parent_is_shown_with_its_place_and_nothing_runs(person: Person) -> None:
    person.write("own.yaml", OWN)
    base: Path = person.write("shared/base.yaml", BASE.replace("allow", "alow"))
    done = person.safeclaw("run", "--policy", "own.yaml", "--", "touch", "made")
    assert done.returncode == 125
    assert f"{base.relative_to(person.workspace)}:3:" in done.stderr
    assert "did you mean 'allow'" in done.stderr
    assert not (person.workspace / "made").exists()
