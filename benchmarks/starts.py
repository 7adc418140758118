"""What it costs to run a program that does nothing, beside those that others use for it."""

from __future__ import annotations

import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

from benchmarks.common import HERE, SAFECLAW, BenchError, progress_bar, running_broker

POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: "true", effect: allow}
"""


def compare_starts(scratch: Path, rounds: int) -> dict[str, float]:
    """Return the median milliseconds from start to end of a program that does nothing."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise BenchError("bwrap is not installed")
    policy = scratch / "start.yaml"
    policy.write_text(POLICY)
    run = [str(SAFECLAW), "run", "--policy", str(policy), "--", "true"]
    own, daemon = ({**os.environ, "XDG_STATE_HOME": str(scratch / name)} for name in ("own", "all"))
    sides = {
        "bubblewrap": (
            [
                *(bubblewrap, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"),
                *("--dev", "/dev", "--proc", "/proc", "--", "true"),
            ],
            own,
        ),
        "python, nothing imported": ([sys.executable, "-c", "pass"], own),
        "sandlock": ([sys.executable, str(HERE / "sandlock_run.py"), "true"], own),
        "safeclaw run": (run, own),
        "safeclaw run, running broker": (run, daemon),
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    with running_broker(scratch / "all"), progress_bar() as progress:
        for number in progress.track(range(rounds + 1), description="start-up"):
            for name, (command, environment) in sides.items():
                start = time.perf_counter()
                done = subprocess.run(
                    command, cwd=HERE.parent, capture_output=True, text=True, check=False,
                    env=environment,
                )  # fmt: skip
                if done.returncode != 0:
                    raise BenchError(f"{name} ended with {done.returncode}:\n{done.stderr.strip()}")
                if number:  # the first only warms up
                    times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}
