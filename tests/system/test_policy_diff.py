"""``safeclaw policy diff``: by the rules, and over what a real session recorded."""

from __future__ import annotations

import json

from tests.system.conftest import Person

WIDE = """\
version: "1.0"
rules:
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, command: "touch *", effect: allow}
  - {action: "*", effect: deny}
"""


def test_recorded_attempts_are_decided_again_under_both(person: Person) -> None:
    person.write("wide.yaml", WIDE)
    person.write("src/kept", "")
    person.write("narrow.yaml", WIDE.replace('"**"', '"src/**"'))
    person.write(
        "asking.yaml", WIDE.replace('path: "**", effect: allow', 'path: "**", effect: ask')
    )
    ran = person.safeclaw("run", "--policy", "wide.yaml", "--", "touch", "made", "src/too")
    assert ran.returncode == 0, ran.stderr

    narrower = person.safeclaw(
        "policy", "diff", "wide.yaml", "narrow.yaml", "--since", "1h", "--json"
    )
    assert narrower.returncode == 1, narrower.stderr
    found = json.loads(narrower.stdout)
    assert (found["relation"], found["recorded"]["allow"]) == ("narrower", [])
    refused = {one["target"] for one in found["recorded"]["deny"]}
    assert refused == {str(person.workspace / "made")}

    wider = person.safeclaw("policy", "diff", "narrow.yaml", "wide.yaml", "--since", "1h", "--json")
    assert wider.returncode == 1
    allowed = {one["target"] for one in json.loads(wider.stdout)["recorded"]["allow"]}
    assert allowed == refused

    asked = person.safeclaw("policy", "diff", "wide.yaml", "asking.yaml", "--since", "1h")
    assert asked.returncode == 1
    assert "ask a person" in asked.stdout
    assert "allow by wide:1 -> ask by asking:1" in asked.stdout


def test_the_exit_status_is_that_of_diff_and_can_guard_a_pipeline(person: Person) -> None:
    person.write("wide.yaml", WIDE)
    person.write("narrow.yaml", WIDE.replace('"**"', '"src/**"'))
    for words, status in (
        (("wide.yaml", "wide.yaml"), 0),
        (("wide.yaml", "narrow.yaml"), 1),
        (("wide.yaml", "narrow.yaml", "--not-wider"), 0),
        (("narrow.yaml", "wide.yaml", "--not-wider"), 1),
        (("wide.yaml", "missing.yaml"), 125),
        (("wide.yaml", "wide.yaml", "--since", "soon"), 2),
    ):
        done = person.safeclaw("policy", "diff", *words)
        assert done.returncode == status, (words, done.stderr)
        assert "Traceback" not in done.stderr
