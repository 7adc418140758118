"""A policy's ``resources:``, applied: what the kernel holds, and what the supervisor watches.

Limits of one process or file (``file_size``, ``open_files``, and ``cpu_time`` of
each process) are rlimits.  Limits of the session as a whole (``memory``,
``processes``, ``cpu``, ``cpu_time``) need a cgroup; ``wall_time`` is the supervisor's own.
What cannot be held is an error, unless the run was asked to go without.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import threading
import time
from collections.abc import Callable

import msgspec

from safeclaw.errors import WallError
from safeclaw.policies.document import Resources
from safeclaw.sandbox import cgroup
from safeclaw.sandbox.gate import Gate, end_for_defect
from safeclaw.sandbox.spec import Degraded, Isolation, LaunchSpec

#: Seconds between SIGXCPU, which a program may handle, and SIGKILL.
_CPU_GRACE = 2
#: Microseconds in which a share of the processor is given out, as cpu.max has it by itself.
_CPU_PERIOD = 100_000
_SIGXCPU, _SIGXFSZ = 24, 25
#: The longest pause, in seconds: poll(2) takes no more milliseconds than an int has.
_PAUSE_MAX = 1_000_000
#: The one limit with which the kernel starts no program for a core (fs/coredump.c): with 0 it
#: writes none to a file, but still starts what core_pattern names, as root and with all of it.
CORE_LIMIT = 1
_CORE_PATTERN = "/proc/sys/kernel/core_pattern"
_HINT = (
    "run it in a delegated cgroup: systemd-run --user --scope -p Delegate=yes safeclaw run …; "
    "or --allow-degraded cgroup, which holds single processes only"
)


class Plan(msgspec.Struct, frozen=True):
    """What holds the limits: rlimits of each process, values of the cgroup, and in words."""

    rlimits: tuple[tuple[int, int], ...] = ()
    values: dict[str, str] = {}
    wants_group: bool = False
    said: tuple[str, ...] = ()


def plan(spec: LaunchSpec, *, group: bool, root: bool) -> Plan:
    """Return how the limits are held; ``group``: in a cgroup.  Pure, but for counting tasks."""
    wanted = spec.resources
    rlimits: list[tuple[int, int]] = []
    values: dict[str, str] = {}
    said: list[str] = []
    if wanted.memory is not None:
        if group:
            values["memory.max"] = str(wanted.memory)
            said.append(f"memory: {wanted.memory} bytes, cgroup memory.max")
        else:
            rlimits.append((resource.RLIMIT_DATA, wanted.memory))
            said.append(f"memory: {wanted.memory} bytes of data in each process, RLIMIT_DATA")
    if wanted.processes is not None:
        # the session's first process is one more, and not the agent's
        most = wanted.processes + 1
        own_count = spec.isolation is Isolation.FULL and not root
        if group:
            values["pids.max"] = str(most)
            said.append(f"processes: {wanted.processes}, cgroup pids.max")
        elif own_count:
            rlimits.append((resource.RLIMIT_NPROC, most))
            said.append(f"processes: {wanted.processes}, RLIMIT_NPROC in its own user namespace")
        elif root:
            said.append("processes: not held, RLIMIT_NPROC does not bind root")
        else:
            rlimits.append((resource.RLIMIT_NPROC, most + _tasks_of(os.getuid())))
            said.append(
                f"processes: {wanted.processes} beyond those that the user has at the start"
            )
    if wanted.cpu is not None:
        if group:
            values["cpu.max"] = f"{wanted.cpu * _CPU_PERIOD // 100} {_CPU_PERIOD}"
            said.append(f"cpu: {wanted.cpu}% of a processor, cgroup cpu.max")
        else:
            said.append("cpu: not held, there is no rlimit for it")
    if wanted.cpu_time is not None:
        rlimits.append((resource.RLIMIT_CPU, wanted.cpu_time))
        whole = "of the session, cpu.stat, and " if group else ""
        said.append(f"cpu_time: {wanted.cpu_time} s {whole}of each process, RLIMIT_CPU")
    if wanted.file_size is not None:
        rlimits.append((resource.RLIMIT_FSIZE, wanted.file_size))
        said.append(f"file_size: {wanted.file_size} bytes, RLIMIT_FSIZE")
    if wanted.open_files is not None:
        rlimits.append((resource.RLIMIT_NOFILE, wanted.open_files))
        said.append(f"open_files: {wanted.open_files} in each process, RLIMIT_NOFILE")
    if wanted.wall_time is not None:
        said.append(f"wall_time: {wanted.wall_time} s, by the supervisor")
    return Plan(tuple(rlimits), values, needs_group(spec, root=root), tuple(said))


def needs_group(spec: LaunchSpec, *, root: bool) -> bool:
    """Whether some limit can be held for the session as a whole only by a cgroup."""
    wanted = spec.resources
    counted = spec.isolation is Isolation.FULL and not root
    return (
        wanted.memory is not None
        or wanted.cpu is not None
        or wanted.cpu_time is not None
        or (wanted.processes is not None and not counted)
    )


def _tasks_of(uid: int) -> int:
    """Return how many tasks a user has: RLIMIT_NPROC counts threads (getrlimit(2))."""
    count = 0
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if entry.isdigit() and os.stat(f"/proc/{entry}").st_uid == uid:
                count += len(os.listdir(f"/proc/{entry}/task"))
    return count


def set_own(rlimits: tuple[tuple[int, int], ...]) -> None:
    """Set the limits of this process: they can be lowered by it, never raised again."""
    for kind, most in rlimits:
        hard = resource.getrlimit(kind)[1]
        top = most + _CPU_GRACE if kind == resource.RLIMIT_CPU else most
        if hard != resource.RLIM_INFINITY:
            top = min(top, hard)
        resource.setrlimit(kind, (min(most, top), top))


def hold_core() -> None:
    """Have this process and all that it becomes leave no core, as far as the person may.

    SAFETY: the first program lets nobody set the limit again; who could, starts the handler.
    """
    try:
        resource.setrlimit(resource.RLIMIT_CORE, (CORE_LIMIT, CORE_LIMIT))
    except ValueError:  # it is 0, and not to be raised
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # core(5): no memory in one that is taken all the same
    with contextlib.suppress(OSError), open("/proc/self/coredump_filter", "w") as out:
        out.write("0")


def core_is_told(pid: int) -> str:
    """Return what of the host is told of a crash of that process; "" for nothing."""
    try:
        with open(_CORE_PATTERN) as source:
            pattern = source.read().strip()
    except OSError:
        return ""
    if pattern.startswith("@"):  # Linux 6.16
        return "the host's core_pattern is a socket, which no limit keeps from being told"
    if pattern.startswith("|") and resource.prlimit(pid, resource.RLIMIT_CORE)[0] != CORE_LIMIT:
        return "a hard limit of 0 (ulimit -c) does not keep the host's core_pattern from being run"
    return ""


def enter(path: str) -> None:
    """Move this process into the session's cgroup, if it has one."""
    if path:
        cgroup.enter(path)


def prepare(spec: LaunchSpec) -> Limits:
    """Make what holds the limits of a session.  Raises WallError."""
    root = os.geteuid() == 0
    group = None
    whole = plan(spec, group=True, root=root)
    if whole.values or whole.wants_group:
        try:
            group = cgroup.Group.make(whole.values)
        except (cgroup.CgroupError, OSError) as problem:
            # of one's own user namespace the processes are counted without one
            if whole.wants_group and Degraded.CGROUP not in spec.degraded:
                raise WallError(
                    f"the policy's resources need a cgroup of the session's own: {problem}",
                    hint=_HINT,
                ) from problem
    return Limits(spec.resources, plan(spec, group=group is not None, root=root), group)


class Limits:
    """The limits of one session, from before its first process until after its last."""

    def __init__(self, wanted: Resources, made: Plan, group: cgroup.Group | None) -> None:
        self._wanted = wanted
        self.plan = made
        self._group = group
        self._seen: set[str] = set()
        self._lock = threading.Lock()
        self._woken, self._wake = os.pipe2(os.O_CLOEXEC)

    @property
    def group(self) -> str:
        """The path of the session's cgroup, or nothing."""
        return "" if self._group is None else self._group.path

    def hold_supervisor(self) -> None:
        """Hold the supervisor to what it does for the agent: truncate(2) makes files longer."""
        if self._wanted.file_size is not None:
            set_own(((resource.RLIMIT_FSIZE, self._wanted.file_size),))

    def watch(self, gate: Gate, kill: Callable[[], None]) -> None:
        """Tell the gate of each limit that is reached; end the session where that is the limit."""
        if self._group is None and self._wanted.wall_time is None:
            return
        threading.Thread(target=self._guard, args=(gate, kill), name="limits", daemon=True).start()

    def kill(self) -> None:
        """Kill what is in the cgroup."""
        if self._group is not None:
            self._group.kill()

    def finish(self, gate: Gate, status: int) -> None:
        """Say what was reached at the very end, and remove the cgroup."""
        os.close(self._wake)
        self._look(gate)
        if status == 128 + _SIGXCPU and self._wanted.cpu_time is not None:
            self._reached(gate, "cpu_time", f"a process has used {self._wanted.cpu_time} s")
        if status == 128 + _SIGXFSZ and self._wanted.file_size is not None:
            text = f"a file would have grown beyond {self._wanted.file_size} bytes"
            self._reached(gate, "file_size", text)
        if self._group is not None:
            self._group.remove()

    def discard(self) -> None:
        """Remove what was made for a session that did not start."""
        if self._group is not None:
            self._group.kill()
            self._group.remove()

    def _guard(self, gate: Gate, kill: Callable[[], None]) -> None:
        try:
            self._watch(gate, kill)
        except Exception as problem:
            # SAFETY: nothing holds the session to its limits any more.
            end_for_defect(gate, "limits", problem, kill)

    def _watch(self, gate: Gate, kill: Callable[[], None]) -> None:
        wall, cpu = self._wanted.wall_time, self._wanted.cpu_time
        until = None if wall is None else time.monotonic() + wall
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        with contextlib.ExitStack() as stack:
            for name in ("memory.events", "pids.events") if self._group is not None else ():
                with contextlib.suppress(OSError):
                    source = stack.enter_context(open(f"{self.group}/{name}", "rb"))
                    poller.register(source.fileno(), select.POLLPRI)
                    source.read()
            while True:
                left = None if until is None else max(0.0, until - time.monotonic())
                pause = left
                if cpu is not None and self._group is not None:
                    try:
                        used = self._group.count("cpu.stat", "usage_usec") / 1e6
                    except OSError as problem:
                        if problem.errno not in (errno.ENOENT, errno.ENODEV):
                            raise  # nobody would look at the clock any more
                        return  # the session has ended, and its cgroup with it
                    if used >= cpu:
                        text = f"the session has used {cpu} s: stopped"
                        self._reached(gate, "cpu_time", text, kill)
                        return
                    # it cannot be used up sooner than by every processor at once
                    soonest = max(0.05, (cpu - used) / (os.cpu_count() or 1))
                    pause = soonest if left is None else min(left, soonest)
                if left == 0.0:
                    text = f"the session has taken {wall} s: stopped"
                    self._reached(gate, "wall_time", text, kill)
                    return
                found = poller.poll(None if pause is None else min(pause, _PAUSE_MAX) * 1000 + 1)
                if any(number == self._woken for number, _ in found):
                    return
                if found:
                    self._look(gate)

    def _look(self, gate: Gate) -> None:
        """Look whether the kernel has held a limit since the last look."""
        if self._group is None:
            return
        wanted = self._wanted
        for limit, file, key, text in (
            ("memory", "memory.events", "oom_kill",
             f"the session has used its {wanted.memory} bytes: the kernel killed a process"),
            ("processes", "pids.events", "max",
             f"the session has {wanted.processes} processes: a further one was refused"),
            ("cpu", "cpu.stat", "nr_throttled",
             f"the session has used its {wanted.cpu}% of a processor: it was held back"),
        ):  # fmt: skip
            if getattr(wanted, limit) is None:
                continue
            with contextlib.suppress(OSError):
                if self._group.count(file, key):
                    self._reached(gate, limit, text)

    def _reached(
        self, gate: Gate, limit: str, text: str, stop: Callable[[], None] | None = None
    ) -> None:
        """Record a limit, the first time that it is reached, stop what it ends, and tell."""
        with self._lock:
            if limit in self._seen:
                return
            self._seen.add(limit)
        gate.limit(limit, text, stop)
