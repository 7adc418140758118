"""The kill switch under load, against a plain SIGKILL of process groups as large.

Sessions of a
system-like broker (``safeclawd`` on a state of its own) open files as fast as they can;
``safeclaw kill --all`` is timed from its first instruction to the last process gone.
The floor kills the same number of the same programs, without walls, by their groups.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

import psutil

from benchmarks.common import SAFECLAW, BenchError, running_broker

#: Two processes that open a file ten times a second each: what fifty of them ask is decided
#: at once by a broker that has a CPU, and is no contest for the CPUs themselves.
AGENT = """\
import os, time
os.fork() or print("x", flush=True)
while True:
    open("data.txt").close()
    time.sleep(0.1)
"""
POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "**", effect: allow}
  - {action: shell.execute, command: "/usr/** *", effect: allow}
"""
_PATIENCE = 120.0


def _start(commands: int, command: list[str], cwd: Path) -> list[subprocess.Popen[bytes]]:
    """Start so many, one after the other, and wait until each is at work."""
    started: list[subprocess.Popen[bytes]] = []
    for _ in range(commands):
        process = subprocess.Popen(
            command, cwd=cwd, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        started.append(process)
        assert process.stdout is not None
        if process.stdout.readline() != b"x\n":
            raise BenchError(f"{command[0]} ended with {process.wait()}")
    return started


def _trees(started: list[subprocess.Popen[bytes]]) -> list[int]:
    """Return pidfds of every process of these trees."""
    found: list[int] = []
    for process in started:
        with contextlib.suppress(psutil.Error):
            for one in psutil.Process(process.pid).children(recursive=True):
                with contextlib.suppress(ProcessLookupError):
                    found.append(os.pidfd_open(one.pid))
    return found


def _gone(pidfds: list[int]) -> None:
    """Wait until every process has ended (pidfd_open(2): readable then)."""
    poller = select.poll()
    for pidfd in pidfds:
        poller.register(pidfd, select.POLLIN)
    left = len(pidfds)
    while left:
        ready = poller.poll(_PATIENCE * 1000)
        if not ready:
            raise BenchError(f"{left} processes are still there")
        for pidfd, _ in ready:
            poller.unregister(pidfd)
            os.close(pidfd)
            left -= 1


def _end(started: list[subprocess.Popen[bytes]]) -> None:
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


def floor(sessions: int, cwd: Path) -> float:
    """Return the milliseconds that plain SIGKILLs take."""
    started = _start(sessions, ["/usr/bin/python3", "-S", "-c", AGENT], cwd)
    pidfds = [*_trees(started), *(os.pidfd_open(process.pid) for process in started)]
    begin = time.perf_counter()
    for process in started:
        os.killpg(process.pid, signal.SIGKILL)
    _gone(pidfds)
    took = (time.perf_counter() - begin) * 1000
    _end(started)
    return took


def switch(sessions: int, cwd: Path, policy: Path) -> float:
    """Return the milliseconds from ``safeclaw kill --all`` to the last process gone."""
    command = [
        str(SAFECLAW),
        "run",
        "--policy",
        str(policy),
        "--",
        "/usr/bin/python3",
        "-S",
        "-c",
        AGENT,
    ]
    started = _start(sessions, command, cwd)
    pidfds = _trees(started)
    begin = time.perf_counter()
    killer = subprocess.Popen(
        [str(SAFECLAW), "kill", "--all", "--why", "measured"], stdout=subprocess.DEVNULL
    )
    _gone(pidfds)
    took = (time.perf_counter() - begin) * 1000
    if killer.wait() != 0:
        raise BenchError("safeclaw kill failed")
    refused = subprocess.run(command, cwd=cwd, capture_output=True, check=False)
    if refused.returncode != 125:
        raise BenchError("something runs although the switch is on")
    subprocess.run([str(SAFECLAW), "resume", "--all"], stdout=subprocess.DEVNULL, check=True)
    _end(started)
    return took


def alone(cwd: Path) -> float:
    """Return the milliseconds that the command takes when there is nobody to stop."""
    begin = time.perf_counter()
    command = [str(SAFECLAW), "kill", "--all", "--why", "measured"]
    subprocess.run(command, cwd=cwd, stdout=subprocess.DEVNULL, check=True)
    took = (time.perf_counter() - begin) * 1000
    subprocess.run([str(SAFECLAW), "resume", "--all"], stdout=subprocess.DEVNULL, check=True)
    return took


def idle(seconds: float, cwd: Path, policy: Path, broker: int) -> list[str]:
    """Return what an idle broker and an idle supervisor use."""
    agent = subprocess.Popen(
        [str(SAFECLAW), "run", "--policy", str(policy), "--", "cat"],
        cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
    )  # fmt: skip
    assert agent.stdin is not None
    assert agent.stdout is not None
    agent.stdin.write(b"x\n")
    agent.stdin.flush()
    agent.stdout.readline()
    rows: list[str] = []
    for name, pid in (("broker", broker), ("supervisor", agent.pid)):
        process = psutil.Process(pid)
        before, switches = process.cpu_times(), process.num_ctx_switches().voluntary
        time.sleep(seconds)
        after = process.cpu_times()
        spent = after.user + after.system - before.user - before.system
        turns = process.num_ctx_switches().voluntary - switches
        memory = process.memory_full_info()
        rows.append(
            f"  {name:<28} {memory.rss / 2**20:6.1f} MiB resident, "
            f"{memory.uss / 2**20:.1f} its own; CPU {100 * spent / seconds:.2f} %, "
            f"{turns / seconds:.1f} wake-ups/s"
        )
    agent.communicate()
    return rows


def measure(sessions: int, rounds: int, seconds: float) -> list[str]:
    """Return the lines to print.  BenchError."""
    with tempfile.TemporaryDirectory(prefix="safeclaw-kill.") as directory:
        base = Path(directory)
        (base / "work").mkdir()
        (base / "work" / "data.txt").write_text("data\n")
        policy = base / "policy.yaml"
        policy.write_text(POLICY)
        before = os.environ.get("XDG_STATE_HOME")
        os.environ["XDG_STATE_HOME"] = str(base / "state")
        try:
            with running_broker(base / "state") as broker:
                used = idle(seconds, base / "work", policy, broker)
                floors: list[float] = []
                switches: list[float] = []
                commands: list[float] = []
                for _ in range(rounds):
                    floors.append(floor(sessions, base / "work"))
                    switches.append(switch(sessions, base / "work", policy))
                    commands.append(alone(base / "work"))
        finally:
            if before is None:
                del os.environ["XDG_STATE_HOME"]
            else:
                os.environ["XDG_STATE_HOME"] = before
    low, high = statistics.median(floors), statistics.median(switches)
    least = statistics.median(commands)
    return [
        f"idle, over {seconds:.0f} s each",
        *used,
        f"everything stopped, {sessions} sessions that open files (median of {rounds})",
        f"  {'SIGKILL to their groups':<28} {low:9.2f} ms     1.00 x",
        f"  {'safeclaw kill --all':<28} {high:9.2f} ms   {high / low:6.2f} x",
        f"  {'the same, nobody to stop':<28} {least:9.2f} ms   {least / low:6.2f} x",
    ]
