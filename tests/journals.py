"""Real journals for tests: what is recorded, and a host whose clocks can be turned."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from safeclaw.daemon.journal import (
    Entry,
    Journal,
    PolicyRef,
    RecordType,
    files,
    journal,
    tip,
    upkeep,
)
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.report import Finding, Status
from safeclaw.daemon.journal.verifier import verify

POLICY = PolicyRef(name="default", sha256="ab" * 32, version="1.0")
DAY = 86_400 * 10**9


def decision(number: int, *, effect: str = "allow", agent: str = "tester") -> Entry:
    """Return a decision as a session makes it."""
    return Entry(
        type=RecordType.DECISION,
        session="s-1",
        agent=agent,
        attempt=number,
        pid=7,
        uid=1000,
        exe="/usr/bin/python3",
        action="file.read",
        target={"path": f"/srv/agent/file-{number}"},
        fingerprint="cd" * 32,
        decision=effect,
        rule="default:1",
        reason="because",
        policy=POLICY,
        enforced_by="openat",
        latency_ns=12_345,
    )


def segment(directory: Path, number: int = 1) -> Path:
    """Return the path of a segment."""
    return directory / files.segment_name(number)


def write_chain(state: Path, count: int) -> Path:
    """Write a closed chain of ``count`` decisions; return its directory."""
    with Journal.open(state / "journal") as journal:
        for number in range(count):
            journal.append(decision(number))
        journal.commit()
    return state / "journal"


def found(directory: Path) -> Finding:
    """Return what is wrong with a chain, which must not hold."""
    report = verify(directory)
    assert report.status is Status.TAMPERED
    assert report.finding is not None
    return report.finding


class Host:
    """The clocks and the boot id that a writer sees; only what time does is not real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._monkeypatch = monkeypatch
        self.wall_ns = 1_780_000_000 * 10**9
        self.boot_ns = 5 * 10**9
        self.boot = 0
        self._pause = (-1, 0)
        clock = SimpleNamespace(
            **{name: getattr(time, name) for name in dir(time) if not name.startswith("_")}
        )
        clock.time_ns = lambda: self._look(self.wall_ns)
        clock.monotonic_ns = lambda: self.boot_ns

        def clock_gettime_ns(_clock: int) -> int:
            return self._look(self.boot_ns)

        clock.clock_gettime_ns = clock_gettime_ns
        for module in (journal, tip, upkeep):
            monkeypatch.setattr(module, "time", clock)

    def _look(self, clock: int) -> int:
        looks, nanoseconds = self._pause
        self._pause = (looks - 1, nanoseconds)
        if looks == 0:
            self.passes(nanoseconds)
        return clock

    def passes_at_look(self, looks: int, nanoseconds: int) -> None:
        """Let time pass right after the next look at a clock, or after ``looks`` more."""
        self._pause = (looks, nanoseconds)

    def passes(self, nanoseconds: int) -> None:
        """Let time pass on every clock."""
        self.wall_ns += nanoseconds
        self.boot_ns += nanoseconds

    def step(self, nanoseconds: int) -> None:
        """Set the wall clock."""
        self.wall_ns += nanoseconds

    def reboot(self) -> None:
        """Start again: a new boot id, and the boot clock from nothing."""
        self.boot += 1
        self.boot_ns = 3 * 10**9
        self.passes(20 * 10**9)

    def open(self, directory: Path, keeping: Keeping | None = None) -> Journal:
        """Open a journal on this host, in its present boot."""
        with self._monkeypatch.context() as patch:
            set_boot_id(patch, self.boot)
            return Journal.open(directory, keeping=keeping or Keeping())


def set_boot_id(patch: pytest.MonkeyPatch, boot: int) -> None:
    """Give writers that open from now on a made-up boot id."""
    original = Path.read_text

    def read_text(path: Path, *arguments: object, **options: object) -> str:
        if str(path) == "/proc/sys/kernel/random/boot_id":
            return f"00000000-0000-4000-8000-{boot:012}\n"
        return original(path, *arguments, **options)  # type: ignore[arg-type]

    patch.setattr(Path, "read_text", read_text)
