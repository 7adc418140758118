"""The ratios that the project promises, measured side by side on this machine.

``./dev bench`` runs this.  Every comparison alternates between its sides, round
by round, and compares medians, so that a machine that is busy or changes its
clock speed meets both.  Nothing here is a test: a number is printed, and read
by a person.
"""

from __future__ import annotations

import argparse
import compileall
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from benchmarks import killing, opens, recording, starts, work
from benchmarks.common import HERE, BenchError, show

# As many as a policy of 256 KiB, the most that is read, has room for.
MANY = 4_000


def _opens(scratch: Path, arguments: argparse.Namespace) -> None:
    floor = opens.build_floor(scratch / "workspace")
    few = opens.write_policy(scratch / "few.yaml", floor, rules=1)
    many = opens.write_policy(scratch / "many.yaml", floor, rules=MANY)
    policies = {"safeclaw, 1 rule": few, f"safeclaw, {MANY:,} rules": many}
    cpu = min(os.sched_getaffinity(0))
    for place, title in ((cpu, "pinned to one CPU"), (None, "unpinned")):
        medians = opens.compare_opens(scratch, policies, place, arguments.rounds, arguments.count)
        show(f"open + close, {title} (median)", medians, "us", against="floor (C)")
        ratio = medians[f"safeclaw, {MANY:,} rules"] / medians["safeclaw, 1 rule"]
        print(f"  {MANY:,} rules against 1: {ratio:.2f} x")
    crowds = opens.compare_crowds(scratch, arguments.rounds)
    alone = next(iter(crowds))
    show("open + read + close in a crowd (median)", crowds, "us", against=alone)


def _journal(scratch: Path, arguments: argparse.Namespace) -> None:
    producers = recording.PRODUCERS
    rate, median, slowest, spent = recording.throughput(scratch / "producers", arguments.seconds)
    print(f"journal, acknowledged on disk, {producers} sessions with one broker")
    print(f"  {rate:,.0f} records/s, median {median:.2f} ms, p99 {slowest:.2f} ms")
    sync = recording.sync_ms(scratch)
    print(f"  the broker's CPU {spent:.0f} us a record; one sync of this disk {sync:.2f} ms")
    for records in (arguments.records // 10, arguments.records):
        written, verified = recording.rates(scratch / str(records), records)
        print(f"journal, {records:,} records in batches")
        print(f"  written {written:,.0f} records/s")
        for jobs, found in verified.items():
            print(
                f"  verified {found.rate:,.0f} records/s by {jobs} at a time, "
                f"{found.by_cpu:,.0f} for a second of CPU, in {found.peak:.0f} MiB each"
            )


def _kill(_scratch: Path, arguments: argparse.Namespace) -> None:
    print("\n".join(killing.measure(arguments.sessions, rounds=5, seconds=10.0)))


def _start(scratch: Path, arguments: argparse.Namespace) -> None:
    medians = starts.compare_starts(scratch, arguments.rounds)
    show("start to end of `true` (median)", medians, "ms", against="bubblewrap")


def _work(scratch: Path, arguments: argparse.Namespace) -> None:
    for name, medians in work.compare_work(scratch, max(3, arguments.rounds // 5)).items():
        show(f"{name} (median)", medians, "s ", against="outside")


PARTS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "opens": _opens,
    "journal": _journal,
    "kill": _kill,
    "start": _start,
    "work": _work,
}


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; else all")
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each side")
    parser.add_argument("--count", type=int, default=2000, help="opens in a round")
    parser.add_argument("--seconds", type=float, default=3.0, help="of journal producers")
    parser.add_argument("--records", type=int, default=1_000_000, help="that are verified")
    parser.add_argument("--sessions", type=int, default=50, help="that are killed at once")
    arguments = parser.parse_args()
    unknown = set(arguments.parts) - set(PARTS)
    if unknown:
        parser.error(f"no such part: {', '.join(sorted(unknown))}")
    # As a package has it: else each start would compile what the person may not write.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    for place in ("daemon", "sandbox", "policies", "src"):
        compileall.compile_dir(HERE.parent / place, quiet=1)
    with tempfile.TemporaryDirectory(prefix="safeclaw-bench.") as directory:
        scratch = Path(directory)
        (scratch / "workspace").mkdir()
        (scratch / "workspace" / "data.txt").write_text("data\n")
        # A journal of its own: the person's is not for benchmarks.
        os.environ["XDG_STATE_HOME"] = str(scratch / "state")
        try:
            for name in arguments.parts or PARTS:
                PARTS[name](scratch, arguments)
        except (BenchError, subprocess.CalledProcessError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
