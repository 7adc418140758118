"""One session: put up the walls, start the agent in them, mediate until it ends.

The supervisor (this process) forks the session's first process (:mod:`first`):
PID 1 of the agent's namespaces, or with landlock isolation its keeper.  When the
supervisor dies, that one and every process of the agent die with it.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import select
import signal
import socket
import struct
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import msgspec

from safeclaw.errors import CommandError, SafeclawError, WallError
from safeclaw.policies.model import printable
from safeclaw.sandbox import first, landlock, limits, linux, names, walls
from safeclaw.sandbox.filters import build
from safeclaw.sandbox.gate import Gate, end_for_defect
from safeclaw.sandbox.spec import Degraded, Isolation, LaunchSpec

if TYPE_CHECKING:
    from safeclaw.sandbox.caseless import Look
    from safeclaw.sandbox.confine import Own
    from safeclaw.sandbox.mediator import Mediator

_NO_NAMESPACES = (
    "user namespaces may be switched off: see safeclaw doctor; "
    "--isolation landlock does without them"
)
_FEW_TASKS = "ulimit -u says how many processes and threads you may have: all of yours count"
#: What full isolation has and landlock isolation has not, by name, and what holds instead.
MISSING = (
    "mount namespace: names outside the view can be seen by stat(2), and not opened",
    "pid namespace: processes of the host can be seen to exist; signals, /proc and tracing stop "
    "at the session's own",
    "net namespace: no loopback of its own, every address needs a rule; the host's interfaces and "
    "connections can be listed",
    "ipc namespace: System V IPC is refused",
    "private /tmp: TMPDIR is the session's own, the rest of /tmp, /var/tmp and /dev/shm is refused",
    "resolver: /etc/hosts gives the names that rules spell out, wildcards resolve to nothing",
)


class Session:
    """A running agent: ``wait`` for its end, ``kill`` it from any thread."""

    def __init__(
        self, init: int, spec: LaunchSpec, gate: Gate, held: limits.Limits, own: Own | None
    ) -> None:
        self._init = init
        self._pidfd = os.pidfd_open(init)
        self._gate = gate
        self._limits = held
        self._own = own
        self._confined = spec.isolation is Isolation.LANDLOCK

    def kill(self) -> None:
        """Kill every process of the agent."""
        self._limits.kill()
        asked = signal.SIGKILL
        if self._confined:
            from safeclaw.sandbox import tree

            # SAFETY: it takes descriptors, and the agent's waiting calls may hold all that there
            # are here. The keeper has its own.
            with contextlib.suppress(OSError):
                tree.kill(self._init)
            asked = signal.SIGTERM  # the keeper goes when nothing is left to be kept
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, asked)

    def wait(self, woken: int) -> int:
        """Return the agent's exit status, 128+n for a signal; its last process has then gone.

        Whenever ``woken`` can be read this thread comes round, and Python's signal handlers run.
        """
        ready = select.poll()
        ready.register(self._pidfd, select.POLLIN)
        ready.register(woken, select.POLLIN)
        while all(fd != self._pidfd for fd, _ in ready.poll()):
            os.read(woken, 4096)
        return self.reap()

    def reap(self) -> int:
        """Wait without running signal handlers; else as :meth:`wait`."""
        _, ended = os.waitpid(self._init, 0)
        status = 128 + signal.SIGKILL
        if os.WIFEXITED(ended):
            status = os.waitstatus_to_exitcode(ended)
        elif self._confined:
            self._end_orphans()
        self._limits.finish(self._gate, status)
        if self._own is not None:
            self._own.remove()
        return status

    def _end_orphans(self) -> None:
        """End what a keeper that was killed from outside has left: this process's own now."""
        from safeclaw.sandbox import tree

        tree.end_filtered(os.getpid())


def resolve_command(command: tuple[str, ...], path: str, cwd: str) -> tuple[str, ...]:
    """Return argv with the program's absolute path; raise CommandError like env(1).

    A ``*.py`` file without the executable bit is run with the python3 on PATH.
    """
    name = command[0]
    if "/" in name or (name.endswith(".py") and os.path.isfile(os.path.join(cwd, name))):
        program = os.path.normpath(os.path.join(cwd, name))
        if not os.path.exists(program):
            raise CommandError(f"{name}: not found", status=127, hint="check the path")
        if os.path.isdir(program):
            raise CommandError(f"{name}: is a directory", status=126, hint="name a program in it")
        if not os.access(program, os.X_OK):
            if name.endswith(".py"):
                return (*resolve_command(("python3",), path, cwd), program, *command[1:])
            raise CommandError(f"{name}: not executable", status=126, hint=f"chmod +x {name}")
        return (program, *command[1:])
    for directory in path.split(":"):
        program = os.path.join(cwd, directory, name)
        if os.path.isfile(program) and os.access(program, os.X_OK):
            return (program, *command[1:])
    raise CommandError(f"{name}: not found on PATH", status=127, hint="give its path")


def launch(spec: LaunchSpec, gate: Gate, look: Look, ready: Callable[[], None]) -> Session:
    """Start the agent; every attempt it makes goes through ``gate``.

    ``look`` goes on to see what is mounted; ``ready`` is called before the agent runs, and raises
    where it is not to.

    Raises WallError when a layer cannot be put up, CommandError when the first
    exec fails.
    """
    confined = spec.isolation is Isolation.LANDLOCK
    # SAFETY: without namespaces Landlock's scopes are all that keeps signals in.
    abi = landlock.require(older=not confined and Degraded.LANDLOCK_ABI in spec.degraded)
    held = limits.prepare(spec)
    own = None
    try:
        if confined:
            from safeclaw.sandbox.confine import Own

            own = Own.make()
            spec = msgspec.structs.replace(
                spec, environment={"TMPDIR": own.temporary, **spec.environment}
            )
        spec = msgspec.structs.replace(
            spec,
            filters=spec.filters or build(network=spec.network, confined=confined),
            rlimits=held.plan.rlimits,
            cgroup=held.group,
            signals=tuple(int(one) for one in signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        )
        return _launch(spec, gate, look, abi, held, own, ready)
    except BaseException:
        held.discard()
        if own is not None:
            own.remove()
        raise


def _launch(
    spec: LaunchSpec,
    gate: Gate,
    look: Look,
    abi: int,
    held: limits.Limits,
    own: Own | None,
    ready: Callable[[], None],
) -> Session:
    confined = own is not None
    assert spec.filters is not None
    steps = () if confined else walls.plan(spec.view, spec.writable, spec.masked)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    go_read, go_write = os.pipe()
    said_read, said_write = os.pipe()
    servers = names.system_nameservers()
    ours, theirs = socket.socketpair()
    ended, ending = os.pipe()
    sys.stdout.flush()
    sys.stderr.flush()
    init = os.fork()
    if init == 0:
        os.close(go_write)
        os.close(said_read)
        ours.close()
        pipes = first.Pipes(go_read, said_write)
        if own is not None:
            os.close(ended)
            first.keeper(spec, pipes, ending, own.remove)
        os.close(ending)
        first.outer(spec, steps, pipes, theirs, servers)
    theirs.close()
    os.close(ending)
    os.close(go_read)
    os.close(said_write)
    if not confined:
        outer = init
        init = struct.unpack("=i", _read(said_read, 4, _NO_NAMESPACES))[0]
        os.waitpid(outer, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.write(go_write, b"g")
    # While the walls are put up, what mediates is imported; nothing of it can be read later,
    # where a capability was needed for it.
    from safeclaw.sandbox import (
        entries,
        identity,
        interrupt,
        looks,
        metadata,
        opens,
        outside,
        programs,
        sigio,
    )
    from safeclaw.sandbox.mediator import Mediator
    from safeclaw.sandbox.messages import Messages
    from safeclaw.sandbox.network import Network

    agent, listener_number = struct.unpack("=ii", _read(said_read, 8))
    if not confined:
        agent = _host_pid(init, agent)
    inner_pidfd = os.pidfd_open(agent)
    # calls that wait hold descriptors here; the agent's own limit is left as it was
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held.hold_supervisor()
    listener = linux.pidfd_getfd(inner_pidfd, listener_number)
    root = os.open(f"/proc/{agent}/root", os.O_PATH | os.O_CLOEXEC)
    linux.drop_capabilities()
    os.umask(0)
    mediator = Mediator(listener, root, spec.filters.numbers, gate)
    mediator.first_program = spec.command
    if not confined:
        mediator.others, mediator.view = look.others(), (*spec.view, spec.workspace)
    interrupt.prepare()
    bound = names.system_names()
    sockets: list[socket.socket] = []
    if not confined:
        with ours:
            _, fds, _, _ = socket.recv_fds(ours, 1, 2 * len(servers))
        sockets = [socket.socket(fileno=fd) for fd in fds]
        network = Network(outside.cookie(sockets[0]), servers, bound)
        os.close(ended)
    else:
        ours.close()
        network = Network(None, (), bound)
        _confine(mediator, spec, own, bound, init, ended)
    messages = Messages(network)
    for table in (
        *(opens.handlers(), entries.handlers(), metadata.handlers(), looks.handlers()),
        *(programs.handlers(), identity.handlers(), sigio.handlers()),
        *(network.handlers(), messages.handlers()),
    ):
        mediator.register(table)
    session = Session(init, spec, gate, held, own)
    try:
        gate.started(describe(spec, steps, abi, held.plan, limits.core_is_told(agent)))
        look.watch(init, spec.caseless, gate, session.kill)
        names.NameServer(sockets, bound, gate, init).start()
        threading.Thread(
            target=_mediate, args=(mediator, session), name="mediator", daemon=True
        ).start()
        # before the agent runs, which may take every thread that the person may have
        held.watch(gate, session.kill)
        ready()
    except BaseException as problem:
        session.kill()
        if isinstance(problem, RuntimeError):
            raise WallError(f"the session cannot be served: {problem}", hint=_FEW_TASKS) from None
        raise
    os.write(go_write, b"e")
    os.close(go_write)
    failure = _read_all(said_read)
    if failure:
        session.kill()
        session.reap()
        code, _, text = failure.partition(":")
        number = int(code) if code.isdigit() else 0
        # as env(1): what is not there, the program or its interpreter, is 127
        raise CommandError(
            text if number else failure,
            status=127 if number == errno.ENOENT else 126,
            hint="see the denials above" if number == errno.EACCES else "check the program",
        )
    return session


def _mediate(mediator: Mediator, session: Session) -> None:
    try:
        mediator.serve()
    except Exception as problem:
        # SAFETY: nobody answers any more, so nobody may be left that asks.
        end_for_defect(mediator.gate, "mediator", problem, session.kill)


def _confine(
    mediator: Mediator,
    spec: LaunchSpec,
    own: Own | None,
    bound: names.Names,
    keeper: int,
    ended: int,
) -> None:
    """Have the mediator hold back what the namespaces would."""
    from safeclaw.sandbox import deaf, processes
    from safeclaw.sandbox.confine import Confinement
    from safeclaw.sandbox.hosts import Hosts

    assert own is not None
    view = (*spec.view, spec.workspace)
    mediator.resolver.confinement = Confinement(keeper, own, view)
    mediator.register(processes.handlers(ended, keeper))
    mediator.register(deaf.handlers())
    if spec.hosts:
        mediator.hosts = Hosts(spec.hosts, bound, mediator.gate, keeper)


def describe(
    spec: LaunchSpec, steps: tuple[walls.Step, ...], abi: int, held: limits.Plan, told: str
) -> dict[str, object]:
    """Return what was put up, for a person and for the session's first record: printable."""
    found: dict[str, object] = {"isolation": spec.isolation.value}
    missing = [f"landlock: {name}" for name in landlock.lacking(abi)]
    if held.wants_group and not spec.cgroup:
        missing.append("cgroup: limits hold each process, and not the session as a whole")
    if told:
        missing.append(f"crashes: {told}")
    if spec.isolation is Isolation.LANDLOCK:
        missing += MISSING
    else:
        found["namespaces"] = list(walls.NAMESPACE_NAMES)
    network = "host sockets by rule" if spec.network else "own loopback only"
    if spec.isolation is Isolation.LANDLOCK:
        network = "host sockets by rule, no loopback of its own"
    return {
        **found,
        "missing": missing,
        "landlock_abi": abi,
        "seccomp": ["refusals", "allow-list"],
        "no_new_privs": True,
        "network": network,
        "resources": list(held.said),
        "cgroup": printable(spec.cgroup),
        "caseless": [printable(place) for place in spec.caseless],
        "view": [printable(str(step)) for step in steps],
    }


def _host_pid(init: int, inner: int) -> int:
    """Return the pid here of the process that is ``inner`` in the namespace of ``init``."""
    with open(f"/proc/{init}/task/{init}/children") as source:
        children = [int(word) for word in source.read().split()]
    for child in children:
        with open(f"/proc/{child}/status") as source:
            for line in source:
                if line.startswith("NSpid:") and int(line.split()[-1]) == inner:
                    return child
    raise WallError("the agent's first process has gone", hint="run with -v")


def _read(fd: int, size: int, hint: str = "see safeclaw doctor") -> bytes:
    """Read ``size`` bytes after a ``+``, or raise what the child said went wrong after a ``!``."""
    data = b""
    while len(data) < 1 + size:
        chunk = os.read(fd, 1 + size - len(data))
        if not chunk:
            raise WallError("the walls could not be put up", hint="run safeclaw run -v")
        data += chunk
        if data[:1] == b"!":
            raise WallError(
                "the walls could not be put up: "
                + (data[1:] + _rest(fd)).decode("utf-8", "replace"),
                hint=hint,
            )
    return data[1:]


def _rest(fd: int) -> bytes:
    out = b""
    while chunk := os.read(fd, 4096):
        out += chunk
    return out


def _read_all(fd: int) -> str:
    data = _rest(fd)
    os.close(fd)
    return data.lstrip(b"!").decode("utf-8", "replace")


__all__ = [
    "Isolation",
    "LaunchSpec",
    "SafeclawError",
    "Session",
    "describe",
    "launch",
    "resolve_command",
]
