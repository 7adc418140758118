"""What the comparisons share: the commands, a progress bar, and how figures are shown."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from rich.progress import Progress

HERE = Path(__file__).resolve().parent
SAFECLAW = Path(sys.executable).with_name("safeclaw")
SAFECLAWD = Path(sys.executable).with_name("safeclawd")
_PATIENCE = 120.0


class BenchError(Exception):
    """A side of a comparison does not run."""


@contextmanager
def running_broker(state: Path) -> Generator[int]:
    """Keep a broker up for whoever has ``state`` as XDG_STATE_HOME; give its pid.  BenchError."""
    state.mkdir(exist_ok=True)
    daemon = subprocess.Popen([str(SAFECLAWD)], env={**os.environ, "XDG_STATE_HOME": str(state)})
    try:
        end = time.monotonic() + _PATIENCE
        while not (state / "safeclaw" / "broker.sock").exists():
            if time.monotonic() > end or daemon.poll() is not None:
                raise BenchError("safeclawd does not come up")
            time.sleep(0.01)
        yield daemon.pid
    finally:
        daemon.terminate()
        daemon.wait()


def progress_bar() -> Progress:
    """Return a progress bar on stderr; rich draws it only on a terminal."""
    from rich.console import Console

    return Progress(console=Console(stderr=True), transient=True)


def show(title: str, medians: dict[str, float], unit: str, against: str) -> None:
    """Print the medians, each with its ratio to one of them."""
    print(title)
    for name, median in medians.items():
        print(f"  {name:<28} {median:9.2f} {unit}   {median / medians[against]:6.2f} x {against}")
