"""What one open and close costs: bare, under the floor, in the walls, and in a crowd."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from benchmarks.common import HERE, SAFECLAW, BenchError, progress_bar, running_broker

POLICY = """\
version: "1.0"
description: "Open one file, again and again"
rules:
{padding}  - action: file.read
    path: "**"
    effect: allow
  - action: shell.execute
    command: ["{floor} *", "true"]
    effect: allow
"""
CROWD_POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "asked", effect: ask}
  - {action: [file.read, shell.execute], effect: allow}
"""
#: Who open files beside the two that wait, and how often each does.
OTHERS, OPENS = 198, 100
#: Another mediator of opens: decides by Landlock, looks at the paths, keeps no record.
PEER = [sys.executable, str(HERE / "sandlock_run.py")]
PADDING = '  - {{action: file.read, path: "never/{number}/*", effect: deny}}\n'


class Loop:
    """A process that opens and closes a file COUNT times whenever it is asked to."""

    def __init__(
        self, name: str, command: list[str], cwd: Path, count: int, log: Path, **variables: str
    ) -> None:
        self.name = name
        self.count = count
        self.log = log
        self.rounds: list[float] = []
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors,
                env={**os.environ, **variables},
            )  # fmt: skip

    def round(self) -> float:
        """Have it run once; return the microseconds that one open and close took."""
        if self.process.stdin is None or self.process.stdout is None:
            raise BenchError(f"{self.name}: no pipes")
        try:
            self.process.stdin.write(b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            pass  # what it said tells more
        line = self.process.stdout.readline()
        if not line:
            said = self.log.read_text(errors="replace").strip()
            raise BenchError(f"{self.name} ended with {self.process.wait()}:\n{said}")
        return int(line) / self.count / 1000

    def close(self) -> None:
        """End it by closing its input, and wait."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        if self.process.stdout is not None:
            self.process.stdout.close()
        self.process.wait()


@contextmanager
def pinned(cpu: int | None) -> Generator[None]:
    """Keep this process, and what it starts, on one CPU."""
    before = os.sched_getaffinity(0)
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def build_floor(directory: Path) -> Path:
    """Compile floor.c into the directory."""
    program = directory / "floor"
    subprocess.run(
        ["gcc", "-O2", "-Wall", "-Wextra", "-o", str(program), str(HERE / "floor.c")], check=True
    )
    return program


def write_policy(path: Path, floor: Path, rules: int) -> Path:
    """Write the benchmark's policy with so many rules before the one that decides."""
    padding = "".join(PADDING.format(number=number) for number in range(rules - 1))
    path.write_text(POLICY.format(padding=padding, floor=floor))
    return path


def compare_opens(
    scratch: Path, policies: dict[str, Path], cpu: int | None, rounds: int, count: int
) -> dict[str, float]:
    """Return the median microseconds of one open and close, for each side."""
    workspace = scratch / "workspace"
    floor = workspace / "floor"
    data = workspace / "data.txt"
    sides = {
        "no supervisor": [str(floor), "--bare", str(data), str(count)],
        "floor (C)": [str(floor), str(data), str(count)],
    }
    sides["sandlock"] = [*PEER, *sides["no supervisor"]]
    for name, policy in policies.items():
        safeclaw = [str(SAFECLAW), "run", "--policy", str(policy), "--"]
        sides[name] = [*safeclaw, *sides["no supervisor"]]
    where = "unpinned" if cpu is None else f"pinned to CPU {cpu}"
    with ExitStack() as stack:
        loops: list[Loop] = []

        def add(name: str, command: list[str], **variables: str) -> None:
            log = scratch / f"{len(loops)}.log"
            with pinned(cpu):
                loop = Loop(name, command, workspace, count, log, **variables)
                stack.callback(loop.close)
                loop.round()  # warm up
            loops.append(loop)

        for name, command in sides.items():
            add(name, command)
        if cpu is not None:
            # What is pinned is the agent and its supervisor; the broker may be a service.
            name = next(iter(policies))
            state = scratch / "daemon"
            stack.enter_context(running_broker(state))
            add(f"{name}, running broker", sides[name], XDG_STATE_HOME=str(state))
        progress = stack.enter_context(progress_bar())
        for _ in progress.track(range(rounds), description=f"open + close, {where}"):
            for loop in loops:
                loop.rounds.append(loop.round())
    return {loop.name: statistics.median(loop.rounds) for loop in loops}


def compare_crowds(scratch: Path, rounds: int) -> dict[str, float]:
    """Return the median microseconds of an open by one of many, alone and beside who waits."""
    workspace = scratch / "crowd"
    workspace.mkdir()
    program = workspace / "crowd"
    source = HERE.parent / "tests" / "system" / "crowd.c"
    subprocess.run(["gcc", "-O2", "-o", str(program), str(source)], check=True)
    policy = scratch / "crowd.yaml"
    policy.write_text(CROWD_POLICY)
    for name in ("fifo", "go"):
        os.mkfifo(workspace / name)
    for name in ("data", "asked"):
        (workspace / name).write_text("something\n")
    run = [str(SAFECLAW), "run", "--policy", str(policy), "--"]
    run += ["./crowd", str(OTHERS), str(OPENS)]
    sides: dict[str, list[str]] = {
        "198 processes": [],
        "beside a FIFO and an approval": ["open", "fifo", "open", "asked"],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    with progress_bar() as progress:
        for _ in progress.track(range(rounds), description="crowds"):
            for name, waiting in sides.items():
                with subprocess.Popen(
                    [*run, *waiting],
                    cwd=workspace,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.PIPE,
                    text=True,
                    start_new_session=True,  # no terminal to ask on
                ) as running:
                    if running.stdout is None or running.stderr is None:
                        raise BenchError(f"{name}: no pipes")
                    if waiting:
                        running.stderr.readline()  # the question is there
                    with (workspace / "go").open("w") as go:
                        go.write("x")
                    start = time.perf_counter()
                    said = running.stdout.readline()
                    took = time.perf_counter() - start
                    running.terminate()
                if said != f"others: {OTHERS * OPENS} opened, 0 failed\n":
                    raise BenchError(f"{name}: {said}")
                times[name].append(took * 1e6 / (OTHERS * OPENS))
    return {name: statistics.median(values) for name, values in times.items()}
