"""``safeclaw ps``: the sessions that run, and what they use of the machine."""

from __future__ import annotations

import time
from typing import Any

import click
import msgspec
import psutil

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking

#: A start that is told later than the kernel's own by this much, in seconds, is another process.
_SLACK = 2.0


class Use(msgspec.Struct, frozen=True):
    """What a session's processes use.  ``cpu`` is in seconds, the sizes are in bytes.

    ``cpu`` counts those that have ended, as far as somebody has waited for them; memory is
    the resident set, in which shared pages count for each process.
    """

    processes: int
    cpu: float
    cpu_percent: float
    memory: int
    supervisor_cpu: float
    supervisor_memory: int


def use_of(supervisor: int, started: float, broker: int) -> Use | None:
    """Return what an agent's processes, below its supervisor, use; None when it cannot be seen.

    A supervisor that started a broker of the user's own is that one's parent.
    """
    try:
        top = psutil.Process(supervisor)
        began = top.create_time()
        if began > started + _SLACK:
            return None  # the number is another process's by now
        own, own_memory = top.cpu_times(), top.memory_info().rss
        tree = top.children(recursive=True)
    except psutil.Error:
        return None
    count, cpu, memory = 0, 0.0, 0
    for process in tree:
        if process.pid == broker:
            continue
        try:
            with process.oneshot():
                times = process.cpu_times()
                resident = process.memory_info().rss
        except psutil.Error:
            continue  # it has ended meanwhile
        count += 1
        cpu += times.user + times.system + times.children_user + times.children_system
        memory += resident
    elapsed = max(time.time() - began, 0.01)
    return Use(
        count, round(cpu, 2), round(100 * cpu / elapsed, 1), memory,
        round(own.user + own.system, 2), own_memory,
    )  # fmt: skip


@click.command(help="The sessions that run, and what they use; your own, or all for who may see.")
@asking.common
def ps_command(broker: str, as_json: bool) -> None:
    """Print one line a session."""
    with asking.connected(broker) as client:
        found: list[dict[str, Any]] = client.ask(control.Sessions())
        pid = client.broker_pid
    used = [use_of(one["supervisor"], one["started"], pid) for one in found]
    if as_json:
        asking.echo_json([{**one, "use": use} for one, use in zip(found, used, strict=True)])
        return
    headings = (
        *("SESSION", "AGENT", "USER", "UP", "PROCS", "CPU", "%CPU", "MEMORY"),
        *("DECISIONS", "DENIED", "POLICY", "COMMAND"),
    )
    rows = [_row(one, use) for one, use in zip(found, used, strict=True)]
    asking.table(headings, rows)


def _row(one: dict[str, Any], use: Use | None) -> tuple[object, ...]:
    from safeclaw.daemon.peer import user_name

    up = asking.span(time.time() - one["started"])
    resources: tuple[object, ...] = ("?", "?", "?", "?")
    if use is not None:
        resources = (use.processes, f"{use.cpu:.1f}s", use.cpu_percent, _size(use.memory))
    return (
        *(one["session"], one["agent"], user_name(one["uid"]), up, *resources),
        *(one["decisions"], one["denials"], one["policy"], " ".join(one["command"])),
    )


def _size(number: int) -> str:
    return f"{number / 2**20:.1f}M" if number < 2**30 else f"{number / 2**30:.1f}G"
