"""What real programs lose in the walls: the same work inside and outside, by the clock.

The work: clone this repository, install wheels from a folder, run this project's
tests of the policy language.  A round of a side starts from what its preparation
left, so that both do the same.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import HERE, SAFECLAW, BenchError, progress_bar

#: What is installed, and what the tests need.
WHEELS = ("pytest", "pytest-timeout", "hypothesis", "jsonschema")
POLICY = """\
version: "1.0"
extends: default
rules:
  - action: [file.read, file.write]
    path: "/tmp/pytest-of-*/**"
    effect: allow
    reason: "What tests call secrets is made up"
"""
#: What is timed, by name, as a shell script; what it made is removed before each round.
WORK = {
    "git clone": ("rm -rf clone", "git clone -q --no-hardlinks project clone"),
    "pip install": (
        "rm -rf site",
        f"tools/bin/python -m pip install -q --no-index --find-links wheels --target site "
        f"{' '.join(WHEELS)}",
    ),
    "pytest": (
        "true",
        "cd project && PYTHONPATH=src:../packages ../tools/bin/python -m pytest -q "
        "-p no:cacheprovider tests/unit/policies",
    ),
}


def _sh(script: str, cwd: Path, *before: str) -> None:
    done = subprocess.run(
        [*before, "/bin/sh", "-euc", script], cwd=cwd, capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"{script}\n{done.stdout[-2000:]}{done.stderr[-2000:]}")


def _prepare(scratch: Path) -> Path:
    """Return a workspace with a clone, wheels, and an environment to install from."""
    workspace = scratch / "work"
    workspace.mkdir()
    _sh(f"git clone -q --no-hardlinks {HERE.parent} project", workspace)
    _sh("/usr/bin/python3 -m venv tools", workspace)
    _sh(f"tools/bin/python -m pip download -q -d wheels {' '.join(WHEELS)}", workspace)
    # what the project itself imports is where this program found it
    site = next(Path(path) for path in sys.path if path.endswith("site-packages"))
    shutil.copytree(site, workspace / "packages")
    tools = "tools/bin/python -m pip install -q --no-index --find-links wheels --target packages"
    _sh(f"{tools} --upgrade {' '.join(WHEELS)}", workspace)
    return workspace


def compare_work(scratch: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Return the median seconds of each work outside and inside."""
    workspace = _prepare(scratch)
    policy = scratch / "work.yaml"
    policy.write_text(POLICY)
    inside = (str(SAFECLAW), "run", "--policy", str(policy), "--")
    times = {name: {"outside": list[float](), "inside": list[float]()} for name in WORK}
    with progress_bar() as progress:
        for number in progress.track(range(rounds + 1), description="real programs"):
            for name, (clear, script) in WORK.items():
                for side, before in (("outside", ()), ("inside", inside)):
                    _sh(clear, workspace)
                    start = time.perf_counter()
                    _sh(script, workspace, *before)
                    if number:  # the first only warms up
                        times[name][side].append(time.perf_counter() - start)
    return {
        name: {side: statistics.median(values) for side, values in sides.items()}
        for name, sides in times.items()
    }
