"""What safeclaw itself is made of is not the agent's to change, wherever that is installed."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.system.conftest import ROOT, Person, copy_package, needed_to_run, options_here

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "denied", effect: deny}
  - {action: [file.read, file.write], path: "**", effect: allow}
  - {action: shell.execute, effect: allow}
"""
#: Modules that are imported when the first denial is shown.
MODULES = ("env/safeclaw/policies/explain.py", "env/json.py", "json.py")
AGENT = """\
import sys
try:
    open(sys.argv[1], "a").write(f"\\nopen({sys.argv[2]!r}, 'w')\\n")
except OSError as problem:
    print(problem.strerror)
try:
    open("denied")
except OSError as problem:
    print(problem.strerror)
"""


def _install(environment: Path) -> None:
    """Install safeclaw there, as pip does."""
    for part in ("daemon", "sandbox", "policies"):
        shutil.copytree(ROOT / part, environment / "safeclaw" / part)
    for single in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "src/safeclaw" / single, environment / "safeclaw" / single)
    for package in needed_to_run("safeclaw", {}).values():
        copy_package(package, environment)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("defence", ["own-code", ""])
def test_an_agent_has_nothing_imported_that_it_has_written(
    person: Person, module: str, defence: str
) -> None:
    environment = person.workspace / "env"
    _install(environment)
    person.write("agent.py", AGENT)
    person.write("denied", "")
    person.write("policy.yaml", POLICY)
    (person.base / "out").mkdir()
    weakened = person.base / "weakened/weakened.py"
    weakened.parent.mkdir()
    shutil.copy(ROOT / "tests/escape/weakened.py", weakened)
    person.own()
    person.program = ["/usr/bin/python3", "-m", "safeclaw.daemon.cli"]
    if defence:
        person.program = ["/usr/bin/python3", str(weakened), defence]
    path = f"{person.workspace}:{environment}"  # the first as python -m has it
    run = ("run", "--policy", "policy.yaml", *options_here(), "--", "/usr/bin/python3", "agent.py")
    ran = person.base / "out/ran"
    done = person.safeclaw(*run, module, str(ran), PYTHONPATH=path)
    assert done.stdout, done.stderr
    assert ran.exists() is bool(defence), done.stdout + done.stderr
