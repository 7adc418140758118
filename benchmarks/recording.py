"""What the journal takes in, and how fast it is verified."""

from __future__ import annotations

import os
import selectors
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import NamedTuple

from benchmarks.common import BenchError
from safeclaw.daemon import protocol
from safeclaw.daemon.client import Client
from safeclaw.daemon.journal import Entry, Journal, PolicyRef, RecordType
from safeclaw.policies.model import Attempt, Decision, FileTarget, Verdict

STRICT_POLICY = b"""\
version: "1.0"
assurance: strict
rules:
  - {action: file.read, path: "**", effect: allow}
"""
#: Who write to the journal at once.
PRODUCERS = 32
_BATCH = 500


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


class Verified(NamedTuple):
    """Records a second, and for each second of CPU; the most memory of any process, in MiB."""

    rate: float
    by_cpu: float
    peak: float


def rates(state: Path, records: int) -> tuple[float, dict[int, Verified]]:
    """Return records a second for writing decisions in batches, and for verifying them.

    The latter by the number of processes: one, and as many as there are CPUs.
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
    cpus = len(os.sched_getaffinity(0))
    return written, {jobs: _verified(state, jobs) for jobs in sorted({1, cpus})}


def _verified(state: Path, jobs: int) -> Verified:
    # A process of its own: what it needed is not mixed with what was needed here.
    verifying = f"""\
import resource, time
from pathlib import Path
from typing import NamedTuple
from safeclaw.daemon.journal.verifier import verify
start = time.perf_counter()
report = verify(Path({str(state / "journal")!r}), jobs={jobs})
took = time.perf_counter() - start
used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
cpu = sum(one.ru_utime + one.ru_stime for one in used)
peak = max(one.ru_maxrss for one in used) / 1024
print(report.records / took, report.records / cpu, peak, report.finding or "")
"""
    done = subprocess.run(
        [sys.executable, "-c", verifying], check=True, capture_output=True, text=True
    )
    rate, by_cpu, peak, *finding = done.stdout.split(maxsplit=3)
    if finding:
        raise BenchError(f"the chain does not verify: {finding[0]}")
    return Verified(float(rate), float(by_cpu), float(peak))
