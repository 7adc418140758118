"""The ratios that the project promises, measured side by side on this machine.

``./dev bench`` runs this.  Every comparison alternates between its sides, round
by round, and compares medians, so that a machine that is busy or changes its
clock speed meets both.  Nothing here is a test: a number is printed, and read
by a person.
"""

from __future__ import annotations

import argparse
import os
import selectors
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.progress import Progress

from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict

HERE = Path(__file__).resolve().parent
SAFECLAW = Path(sys.executable).with_name("safeclaw")
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
STRICT_POLICY = b"""\
version: "1.0"
assurance: strict
rules:
  - {action: file.read, path: "**", effect: allow}
"""
CROWD_POLICY = """\
version: "1.0"
rules:
  - {action: file.read, path: "asked", effect: ask}
  - {action: [file.read, shell.execute], effect: allow}
"""
#: Who open files beside the two that wait, and how often each does.
OTHERS, OPENS = 198, 100
PADDING = '  - {{action: file.read, path: "never/{number}/*", effect: deny}}\n'
# As many as a policy of 256 KiB, the most that is read, has room for.
MANY = 4_000
#: Who write to the journal at once.
PRODUCERS = 32
_BATCH = 500


class BenchError(Exception):
    """A side of a comparison does not run."""


class Loop:
    """A process that opens and closes a file COUNT times whenever it is asked to."""

    def __init__(self, name: str, command: list[str], cwd: Path, count: int, log: Path) -> None:
        self.name = name
        self.count = count
        self.log = log
        self.rounds: list[float] = []
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                command, cwd=cwd, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors
            )

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


@contextmanager
def running_broker(policy: Path, floor: Path, cwd: Path, state: Path) -> Generator[None]:
    """Keep a broker up that any CPU may run, as a daemon is, by a session that does nothing."""
    command = [str(SAFECLAW), "run", "--policy", str(policy), "--", str(floor), "--bare"]
    before = os.environ["XDG_STATE_HOME"]
    os.environ["XDG_STATE_HOME"] = str(state)
    try:
        keeper = Loop("keeper", [*command, str(cwd / "data.txt"), "1"], cwd, 1, cwd / "keeper.log")
        try:
            keeper.round()  # it stands
            yield
        finally:
            keeper.close()
    finally:
        os.environ["XDG_STATE_HOME"] = before


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
    for name, policy in policies.items():
        safeclaw = [str(SAFECLAW), "run", "--policy", str(policy), "--"]
        sides[name] = [*safeclaw, *sides["no supervisor"]]
    where = "unpinned" if cpu is None else f"pinned to CPU {cpu}"
    with ExitStack() as stack:
        loops: list[Loop] = []

        def add(name: str, command: list[str]) -> None:
            with pinned(cpu):
                loop = Loop(name, command, workspace, count, scratch / f"{len(loops)}.log")
                stack.callback(loop.close)
                loop.round()  # warm up
            loops.append(loop)

        for name, command in sides.items():
            add(name, command)
        if cpu is not None:
            # What is pinned is the agent and its supervisor; the broker may be a service.
            name, policy = next(iter(policies.items()))
            state = scratch / "daemon"
            stack.enter_context(running_broker(policy, floor, workspace, state))
            add(f"{name}, running broker", sides[name])
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


def compare_starts(scratch: Path, policy: Path, rounds: int) -> dict[str, float]:
    """Return the median milliseconds from start to end of a program that does nothing."""
    bubblewrap = shutil.which("bwrap")
    if bubblewrap is None:
        raise BenchError("bwrap is not installed")
    sides = {
        "bubblewrap": [
            *(bubblewrap, "--unshare-all", "--die-with-parent", "--ro-bind", "/", "/"),
            *("--dev", "/dev", "--proc", "/proc", "--", "true"),
        ],
        "safeclaw run": [str(SAFECLAW), "run", "--policy", str(policy), "--", "true"],
    }
    times: dict[str, list[float]] = {name: [] for name in sides}
    with progress_bar() as progress:
        for number in progress.track(range(rounds + 1), description="start-up"):
            for name, command in sides.items():
                start = time.perf_counter()
                done = subprocess.run(
                    command, cwd=scratch / "workspace", capture_output=True, text=True, check=False
                )
                if done.returncode != 0:
                    raise BenchError(f"{name} ended with {done.returncode}:\n{done.stderr.strip()}")
                if number:  # the first only warms up
                    times[name].append((time.perf_counter() - start) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def _decision(number: int) -> Entry:
    return Entry(
        type=RecordType.DECISION,
        session="0123456789abcdef",
        agent="bench",
        attempt=number,
        pid=1234,
        uid=1000,
        exe="/usr/bin/python3.11",
        action="file.read",
        target={"path": f"/home/somebody/workspace/src/module_{number % 1000}.py"},
        fingerprint="cd" * 32,
        decision="allow",
        rule="default:1",
        reason="allowed by the rule on line 3",
        policy=PolicyRef(name="default", sha256="ab" * 32, version="1.0"),
        enforced_by="seccomp-notify",
        latency_ns=12_345,
    )


def throughput(state: Path, seconds: float) -> tuple[float, float, float, float]:
    """Have sessions record decisions with a broker, each waiting for the disk before the next.

    Returns records a second, the median and 99th percentile of a wait in ms, and the
    broker's CPU time for a record in us.
    """
    state.mkdir(mode=0o700)
    selector = selectors.EpollSelector()
    clients: list[Client] = []
    verdict = Verdict(Decision.ALLOW, "bench:1", "allowed by the rule on line 4")
    tails = [
        protocol.decided_tail(
            Attempt("file.read", FileTarget(f"/srv/work/src/module_{number}.py")), verdict,
            exe="/usr/bin/python3.11", enforced_by="seccomp-notify",
        )
        for number in range(100)
    ]  # fmt: skip
    for number in range(PRODUCERS):
        client = Client.connect(state)
        client.hello(
            protocol.Hello(
                protocol.VERSION, "bench", ("bench",), "/srv/work", "bench.yaml", STRICT_POLICY
            )
        )
        client.lease()
        clients.append(client)
        selector.register(client.channel.sock, selectors.EVENT_READ, number)
    sent = [0.0] * PRODUCERS
    counts = [0] * PRODUCERS
    waits: list[float] = []

    def send(number: int) -> None:
        counts[number] += 1
        sent[number] = time.perf_counter()
        tail = tails[counts[number] % len(tails)]
        packet = protocol.decided_packet(tail, counts[number], 1234, 12_345)
        clients[number].channel.sock.send(packet)

    pid = clients[0].broker_pid
    spent = _cpu_seconds(pid)
    begin = time.perf_counter()
    for number in range(PRODUCERS):
        send(number)
    while time.perf_counter() - begin < seconds:
        for key, _ in selector.select():
            number = int(key.data)
            message = protocol.decode_to_supervisor(clients[number].channel.sock.recv(65536))
            if isinstance(message, protocol.Ack) and message.number == counts[number]:
                waits.append((time.perf_counter() - sent[number]) * 1000)
                send(number)
    took = time.perf_counter() - begin
    spent = _cpu_seconds(pid) - spent
    for client in clients:
        client.finish()
    waits.sort()
    percentile = waits[int(len(waits) * 0.99)]
    return len(waits) / took, statistics.median(waits), percentile, spent / len(waits) * 1e6


def _cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sync_ms(directory: Path) -> float:
    """Return how long one write and fdatasync takes here: the median, in ms."""
    times: list[float] = []
    with (directory / "sync").open("wb", buffering=0) as stream:
        for _ in range(200):
            start = time.perf_counter()
            stream.write(b"x" * 700)
            os.fdatasync(stream.fileno())
            times.append((time.perf_counter() - start) * 1000)
    return statistics.median(times)


def rates(state: Path, records: int) -> tuple[float, float, float]:
    """Return records a second for writing decisions in batches, and for verifying them.

    The third is the most memory that the verifying process ever had, in MiB.
    """
    with Journal.open(state / "journal") as journal:
        templates = [journal.template(_decision(number)) for number in range(1000)]
        start = time.perf_counter()
        for first in range(0, records, _BATCH):
            journal.append_all(
                (templates[number % 1000], number, 1234, 12_345)
                for number in range(first, min(first + _BATCH, records))
            )
            journal.commit()
        written = records / (time.perf_counter() - start)
    # A process of its own: what it needed is not mixed with what was needed here.
    verifying = f"""\
import resource, time
from pathlib import Path
from safeclaw.daemon.journal.verifier import verify
start = time.perf_counter()
report = verify(Path({str(state / "journal")!r}))
took = time.perf_counter() - start
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(report.records / took, peak / 1024, report.finding or "")
"""
    done = subprocess.run(
        [sys.executable, "-c", verifying], check=True, capture_output=True, text=True
    )
    verified, peak, *finding = done.stdout.split(maxsplit=2)
    if finding:
        raise BenchError(f"the chain does not verify: {finding[0]}")
    return written, float(verified), float(peak)


def progress_bar() -> Progress:
    """Return a progress bar on stderr; rich draws it only on a terminal."""
    from rich.console import Console

    return Progress(console=Console(stderr=True), transient=True)


def show(title: str, medians: dict[str, float], unit: str, against: str) -> None:
    """Print the medians, each with its ratio to one of them."""
    print(title)
    for name, median in medians.items():
        print(f"  {name:<28} {median:9.2f} {unit}   {median / medians[against]:6.2f} x {against}")


def main() -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="./dev bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=25, help="rounds of each side")
    parser.add_argument("--count", type=int, default=2000, help="opens in a round")
    parser.add_argument("--seconds", type=float, default=3.0, help="of journal producers")
    parser.add_argument("--records", type=int, default=1_000_000, help="that are verified")
    parser.add_argument("--sessions", type=int, default=50, help="that are killed at once")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="safeclaw-bench.") as directory:
        scratch = Path(directory)
        (scratch / "workspace").mkdir()
        (scratch / "workspace" / "data.txt").write_text("data\n")
        # A journal of its own: the person's is not for benchmarks.
        os.environ["XDG_STATE_HOME"] = str(scratch / "state")
        try:
            floor = build_floor(scratch / "workspace")
            few = write_policy(scratch / "few.yaml", floor, rules=1)
            many = write_policy(scratch / "many.yaml", floor, rules=MANY)
            policies = {"safeclaw, 1 rule": few, f"safeclaw, {MANY:,} rules": many}
            cpu = min(os.sched_getaffinity(0))
            for place, title in ((cpu, "pinned to one CPU"), (None, "unpinned")):
                opens = compare_opens(scratch, policies, place, arguments.rounds, arguments.count)
                show(f"open + close, {title} (median)", opens, "us", against="floor (C)")
                ratio = opens[f"safeclaw, {MANY:,} rules"] / opens["safeclaw, 1 rule"]
                print(f"  {MANY:,} rules against 1: {ratio:.2f} x")
            crowds = compare_crowds(scratch, arguments.rounds)
            alone = next(iter(crowds))
            show("open + read + close in a crowd (median)", crowds, "us", against=alone)
            rate, median, slowest, spent = throughput(scratch / "producers", arguments.seconds)
            print(f"journal, acknowledged on disk, {PRODUCERS} sessions with one broker")
            print(f"  {rate:,.0f} records/s, median {median:.2f} ms, p99 {slowest:.2f} ms")
            sync = sync_ms(scratch)
            print(
                f"  the broker's CPU {spent:.0f} us a record; one sync of this disk {sync:.2f} ms"
            )
            for records in (arguments.records // 10, arguments.records):
                written, verified, peak = rates(scratch / str(records), records)
                print(f"journal, {records:,} records in batches")
                print(
                    f"  written {written:,.0f} records/s, "
                    f"verified {verified:,.0f} records/s in {peak:.0f} MiB"
                )
            sessions = ("--sessions", str(arguments.sessions))
            subprocess.run([sys.executable, str(HERE / "killing.py"), *sessions], check=True)
            starts = compare_starts(scratch, few, arguments.rounds)
            show("start to end of `true` (median)", starts, "ms", against="bubblewrap")
        except (BenchError, subprocess.CalledProcessError) as error:
            print(f"bench: {error}", file=sys.stderr)
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
