"""A real agent at private files: the chain counts them and never names them."""

from __future__ import annotations

import json
from pathlib import Path

from tests.system.conftest import Person, fields

POLICY = """\
version: "1.0"
pseudonymise: {path: "patients/**"}
rules:
  - {action: file.read, path: "patients/a.txt", effect: allow, reason: "hers"}
  - {action: file, path: "patients/**", effect: deny, reason: "not hers"}
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: ["sh *", "cat *"], effect: allow}
"""


def journal_text(person: Person) -> str:
    place: Path = person.state / "safeclaw" / "journal"
    return "".join(path.read_text() for path in place.glob("segment-*"))


def test_private_files_are_recorded_under_pseudonyms_that_only_the_key_reveals(
    person: Person,
) -> None:
    for name in ("a.txt", "mueller.txt"):
        person.write(f"patients/{name}", f"of {name}\n")
    policy = person.base / "private.yaml"
    policy.write_text(POLICY)
    person.own()
    script = "cat patients/a.txt; cat patients/mueller.txt; cat patients/mueller.txt"
    ran = person.safeclaw("run", "--policy", str(policy), "--", "sh", "-c", script)
    assert ran.stdout == "of a.txt\n", ran.stderr
    assert "mueller" not in journal_text(person)
    assert "a.txt" not in journal_text(person)
    denied = person.records("--action", "file.read", "--decision", "deny")
    names = {str(fields(record["target"])["path"]) for record in denied}
    assert len(denied) == 2
    assert len(names) == 1
    assert names.pop().startswith("hmac:")
    number = str(denied[0]["seq"])
    revealed = person.safeclaw("audit", "reveal", number, "--why", "a complaint", "--json")
    assert revealed.returncode == 0, revealed.stderr
    path = json.loads(revealed.stdout)["plain"]["target"]["path"]
    assert path == str(person.workspace / "patients" / "mueller.txt")
    (export,) = person.records("--type", "export")
    assert (export["action"], export["reason"]) == ("audit.reveal", "a complaint")
    assert person.safeclaw("audit", "verify").returncode == 0


def test_without_the_mark_the_same_files_are_named(person: Person) -> None:
    person.write("patients/mueller.txt", "x\n")
    policy = person.base / "plain.yaml"
    policy.write_text("\n".join(line for line in POLICY.split("\n") if "pseudonymise" not in line))
    person.own()
    person.safeclaw("run", "--policy", str(policy), "--", "sh", "-c", "cat patients/mueller.txt")
    assert "mueller" in journal_text(person)


def test_a_session_whose_key_cannot_be_made_does_not_start(person: Person) -> None:
    person.write("patients/a.txt", "x\n")
    policy = person.base / "private.yaml"
    policy.write_text(POLICY)
    person.own()
    assert person.safeclaw("run", "--", "true").returncode == 0
    (person.state / "safeclaw" / "keys" / "pseudonym.key").write_text("nonsense\n")
    person.own()
    refused = person.safeclaw("run", "--policy", str(policy), "--", "sh", "-c", "echo ran > ran")
    assert refused.returncode == 125
    assert "not a pseudonym key" in refused.stderr
    assert not (person.workspace / "ran").exists()
