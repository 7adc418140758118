"""What the documents say is tried: their commands run, and their policies load."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from safeclaw.policies.cases import load_cases
from safeclaw.policies.loader import load
from safeclaw.policies.source import gather
from tests.system.conftest import Person

DOCS = Path(__file__).resolve().parents[2] / "docs"


def blocks(document: str, language: str) -> list[str]:
    """Return the fenced blocks of one language."""
    text = (DOCS / document).read_text()
    return re.findall(rf"^```{language}\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)


def run(person: Person, script: str) -> tuple[int, str]:
    """Run a script with ``safeclaw`` on PATH; return its status, and all it printed."""
    bin_dir = person.base / "bin"
    bin_dir.mkdir(exist_ok=True)
    program = bin_dir / "safeclaw"
    program.write_text(f'#!/bin/sh\nexec {shlex.join(person.command())} "$@"\n')
    program.chmod(0o755)
    path = f"{bin_dir}:/usr/bin:/bin"
    shell = ["sh", "-eu", "-c", f"exec 2>&1\n{script}"]
    done = person.finish(person.start(shell, person.workspace, PATH=path))
    return done.returncode, done.stdout


def test_the_tutorial_can_be_followed(person: Person) -> None:
    status, said = run(person, "\n".join(blocks("tutorial.md", "sh")))
    assert status == 0, said
    for line in "".join(blocks("tutorial.md", "text")).splitlines():
        assert line in said, f"{line!r} not in\n{said}"
    assert "I have read secrets/token" not in said
    assert (person.workspace / "out/counts.txt").read_text().startswith("2 to\n2 be\n")


@pytest.mark.timeout(400)
def test_the_programs_run_as_the_document_says(person: Person) -> None:
    *most, database = blocks("programs.md", "sh")
    status, said = run(person, "\n".join(most))
    assert status == 0, said
    assert "denied" not in said
    for line in ("work\nfirst", "hello from a wheel", "hello from node", "hello from make"):
        assert f"\n{line}\n" in said
    status, said = run(person, database)
    if person.name == "root":
        assert status != 0
        assert "cannot be run as root" in said
    else:
        assert (status, said) == (0, "hello from PostgreSQL\n")


def test_every_command_of_the_reference_works(person: Person) -> None:
    example, *others = blocks("policy-reference.md", "yaml")
    person.write("policy.yaml", example)
    person.write("cases.yaml", others[-1])
    person.write("src/a.py", "a = 1\n")
    status, said = run(person, "\n".join(blocks("policy-reference.md", "sh")))
    assert status == 0, said
    assert said.count("\nok   ") + said.startswith("ok   ") == 5
    assert (person.workspace / "policy.schema.json").read_text().startswith("{")


@pytest.mark.parametrize(
    "text", blocks("policy-reference.md", "yaml") + blocks("programs.md", "yaml")
)
def test_every_policy_of_the_reference_loads(text: str) -> None:
    if "cases:" in text:
        assert load_cases(text.encode(), name="doc.yaml", workspace="/ws").cases
    else:
        assert load(text, name="doc.yaml", parents=gather("doc.yaml", text.encode())).rules
