"""A trial: this checkout and pytest, with what they need, on a machine that is booted for it."""

from __future__ import annotations

import compileall
import json
import py_compile
import shlex
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution
from pathlib import Path

from tests.deploy import emulated
from tests.deploy.emulated import Machine
from tests.escape.compiling import compile_all
from tests.system.conftest import ROOT, copy_package, needed_to_run

#: How many times longer all may take there, before it is taken for stuck: a dozen is what a quiet
#: host needs, and a busy one several times that.
_SLOWNESS = 60
_RUN = """\
cd /opt/trial
echo /opt/trial/site >/usr/local/lib/python3.11/dist-packages/trial.pth
export SAFECLAW_RESULTS={said} SAFECLAW_ATTACKS=/opt/trial/programs LANG=C.UTF-8
typing=/proc/sys/dev/tty/legacy_tiocsti  # else the kernel holds what an attack is to show
[ ! -e $typing ] || echo 1 >$typing
export SAFECLAW_SLOWNESS={slowness} SAFECLAW_CORPUS={corpus}
status=0
/usr/bin/python3 -m pytest -p tests.guest.report -p no:cacheprovider --timeout {timeout} \\
    {arguments} >&2 || status=$?
echo "{{\\"status\\": $status}}" >{said}
"""


@dataclass(frozen=True)
class Result:
    """How one test ended on the other machine."""

    test: str
    outcome: str
    text: str


@dataclass(frozen=True)
class Trial:
    """What was found in one boot of the other machine, and what its console showed."""

    results: list[Result]
    console: str

    def passed(self, where: str) -> int:
        """Return how many tests of a file or folder passed, after saying which did not."""
        found = [one for one in self.results if one.test.startswith(where)]
        failed = [one for one in found if one.outcome != "passed"]
        text = "\n".join(f"{one.outcome}: {one.test}\n{one.text}" for one in failed)
        assert found, self.console[-4000:]
        assert not failed, f"{text}\n{self.console[-2000:]}"
        return len(found)


def archive(machine: Machine, place: Path, arguments: tuple[str, ...], corpus: str) -> Path:
    """Make the archive for ``pytest ARGUMENTS…`` in ``place``; return its path."""
    site = place / "site"
    for part in ("daemon", "sandbox", "policies"):
        shutil.copytree(ROOT / part, site / "safeclaw" / part)
    for single in ("__init__.py", "errors.py"):
        shutil.copy(ROOT / "src" / "safeclaw" / single, site / "safeclaw" / single)
    found = needed_to_run("safeclaw", {})
    for name in ("pytest-timeout", "hypothesis"):
        needed_to_run(name, found)
    foreign: list[Distribution] = []
    for name, package in found.items():
        if machine.architecture and _compiled(package):
            if f"python3-{name.removesuffix('-python')}" not in machine.packages:
                foreign.append(package)
        else:
            copy_package(package, site)
    if foreign:
        _fetch(foreign, site)
    # the machine is slow, and its ordinary users could keep nothing of what they compile
    compileall.compile_dir(
        site, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )
    programs = place / "programs"
    programs.mkdir()
    compile_all(programs, compiler=machine.compiler)
    (place / "run").write_text(
        _RUN.format(
            said=machine.said,
            arguments=shlex.join(arguments),
            corpus=shlex.quote(corpus),
            slowness=_SLOWNESS,
            timeout=120 * _SLOWNESS,
        )
    )
    made = place / "trial.tar"
    with tarfile.open(made, "w") as tar:
        tar.add(site, "site")
        tar.add(programs, "programs")
        tar.add(place / "run", "run")
        for part in ("tests", "examples", "docs", "pyproject.toml"):
            tar.add(ROOT / part, part)
    return made


def _compiled(package: Distribution) -> bool:
    return "Root-Is-Purelib: false" in (package.read_text("WHEEL") or "")


def _fetch(packages: Iterable[Distribution], site: Path) -> None:
    """Put the same versions of packages, as they are published for aarch64, into ``site``."""
    platforms = (f"--platform=manylinux{glibc}_aarch64" for glibc in ("2014", "_2_17", "_2_28"))
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "--quiet", "--target", str(site)),
            *("--no-deps", "--no-compile", "--only-binary=:all:", "--python-version=3.11"),
            *platforms,
            *(f"{package.name}=={package.version}" for package in packages),
        ],
        check=True,
    )


def run(machine: Machine, place: Path, *arguments: str, corpus: str = "") -> Trial:
    """Run ``pytest ARGUMENTS…`` of this checkout there.

    ``corpus`` chooses attacks by name.
    """
    said, console = emulated.run(machine, archive(machine, place, arguments, corpus), place)
    lines = [json.loads(line) for line in said.splitlines() if line.startswith("{")]
    assert lines, console[-4000:]
    assert "status" in lines[-1], console[-4000:]
    return Trial([Result(**line) for line in lines[:-1]], console)
