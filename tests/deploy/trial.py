"""A trial: this checkout and pytest, with what they need, on a machine that is booted for it."""

from __future__ import annotations

import compileall
import json
import py_compile
import shlex
import shutil
import tarfile
from dataclasses import dataclass
from pathlib import Path

from tests.deploy import emulated
from tests.escape.conftest import compile_all
from tests.system.conftest import ROOT, copy_package, needed_to_run

_RUN = """\
cd /opt/trial
echo /opt/trial/site >/usr/local/lib/python3.11/dist-packages/trial.pth
export SAFECLAW_RESULTS=/dev/ttyS1 SAFECLAW_ATTACKS=/opt/trial/programs LANG=C.UTF-8
export SAFECLAW_SLOWNESS=12 SAFECLAW_CORPUS={corpus}
status=0
/usr/bin/python3 -m pytest -p tests.guest.report -p no:cacheprovider {arguments} >&2 || status=$?
echo "{{\\"status\\": $status}}" >/dev/ttyS1
"""


@dataclass(frozen=True)
class Result:
    """How one test ended on the other machine."""

    test: str
    outcome: str
    text: str


def archive(place: Path, arguments: tuple[str, ...], corpus: str) -> Path:
    """Make the archive for ``pytest ARGUMENTS…`` in ``place``; return its path."""
    site = place / "site"
    for part in ("daemon", "sandbox", "policies"):
        shutil.copytree(ROOT / part, site / "safeclaw" / part)
    for single in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "src" / "safeclaw" / single, site / "safeclaw" / single)
    found = needed_to_run("safeclaw", {})
    for name in ("pytest-timeout", "hypothesis"):
        needed_to_run(name, found)
    for package in found.values():
        copy_package(package, site)
    # the machine is slow, and its ordinary users could keep nothing of what they compile
    compileall.compile_dir(
        site, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    programs = place / "programs"
    programs.mkdir()
    compile_all(programs)
    (place / "run").write_text(
        _RUN.format(arguments=shlex.join(arguments), corpus=shlex.quote(corpus))
    )
    made = place / "trial.tar"
    with tarfile.open(made, "w") as tar:
        tar.add(site, "site")
        tar.add(programs, "programs")
        tar.add(place / "run", "run")
        tar.add(ROOT / "tests", "tests")
        tar.add(ROOT / "pyproject.toml", "pyproject.toml")
    return made


def run(place: Path, *arguments: str, corpus: str = "") -> tuple[list[Result], str]:
    """Run ``pytest ARGUMENTS…`` of this checkout there; return how each test ended, and more.

    The second is what the machine's console showed.  ``corpus`` chooses attacks by name.
    """
    said, console = emulated.run(archive(place, arguments, corpus), place)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert lines, console[-4000:]
    assert "status" in lines[-1], console[-4000:]
    return [Result(**line) for line in lines[:-1]], console
