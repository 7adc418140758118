"""``safeclaw audit``, run in this process."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

from click.testing import CliRunner, Result

from safeclaw.daemon.cli.audit import audit_group


def run(*arguments: str) -> Result:
    return CliRunner().invoke(audit_group, list(arguments))


def broken_off(number: signal.Signals, output: Path, *words: str) -> int:
    """Run ``audit``, end it by a signal while it writes for ``output``; return its exit status.

    What it writes to is a full pipe, where it stays until somebody reads.
    """
    partial = output.with_name(output.name + ".partial")
    os.mkfifo(partial)
    pipe = os.open(partial, os.O_RDWR | os.O_NONBLOCK)
    try:
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(pipe, b"x")
        command = [sys.executable, "-m", "safeclaw.daemon.cli", "audit", *words]
        with subprocess.Popen([*command, "--output", str(output)]) as process:
            while process.poll() is None and not _has_open(process.pid, partial.stat()):
                os.sched_yield()
            process.send_signal(number)
            while process.poll() is None:  # what it closes, it flushes first
                with contextlib.suppress(BlockingIOError):
                    os.read(pipe, 1 << 16)
            return process.returncode
    finally:
        os.close(pipe)


def _has_open(pid: int, what: os.stat_result) -> bool:
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(path.stat(), what):
                return True
    return False
