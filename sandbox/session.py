"""One session: put up the walls, start the agent in them, mediate until it ends.

The supervisor (this process) forks PID 1 of the agent's namespaces; that one
builds the view, forks the agent's first process and reaps.  When the supervisor
dies, the kernel kills PID 1 and with it every process of the agent.
"""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import signal
import socket
import struct
import sys
import threading
from typing import TYPE_CHECKING, NoReturn

import msgspec

from safeclaw.errors import CommandError, SafeclawError, WallError
from safeclaw.policies.model import Attempt, OtherTarget
from safeclaw.sandbox import landlock, linux, names, walls
from safeclaw.sandbox.filters import Filters, build
from safeclaw.sandbox.gate import Gate

if TYPE_CHECKING:
    from safeclaw.sandbox.mediator import Mediator


class LaunchSpec(msgspec.Struct, frozen=True):
    """What to run, and the walls to run it in; all paths are absolute."""

    command: tuple[str, ...]
    workspace: str
    view: tuple[str, ...]
    writable: tuple[str, ...]
    executable_roots: tuple[str, ...]
    masked: tuple[str, ...] = ()
    environment: dict[str, str] = {}
    network: bool = False
    #: What to load instead of what would be built for this.
    filters: Filters | None = None


class Session:
    """A running agent: ``wait`` for its end, ``kill`` it from any thread."""

    def __init__(self, init: int, mediator: Mediator) -> None:
        self._init = init
        self._pidfd = os.pidfd_open(init)
        self._mediator = mediator

    def kill(self) -> None:
        """Kill every process of the agent, by killing PID 1 of its namespace."""
        with contextlib.suppress(ProcessLookupError):
            signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)

    def wait(self) -> int:
        """Return the agent's exit status, 128+n for a signal."""
        _, status = os.waitpid(self._init, 0)
        return os.waitstatus_to_exitcode(status) if os.WIFEXITED(status) else 128 + 9


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
            raise CommandError(f"{name}: is a directory", status=126)
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


def launch(spec: LaunchSpec, gate: Gate) -> Session:
    """Start the agent; every attempt it makes goes through ``gate``.

    Raises WallError when a layer cannot be put up, CommandError when the first
    exec fails.
    """
    abi = landlock.require()
    filters = spec.filters or build(network=spec.network)
    programs_bpf = (filters.refusals, filters.allow_list)
    steps = walls.plan(spec.view, spec.writable, spec.masked)
    linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    go_read, go_write = os.pipe()
    said_read, said_write = os.pipe()
    servers = names.system_nameservers()
    ours, theirs = socket.socketpair()
    sys.stdout.flush()
    sys.stderr.flush()
    outer = os.fork()
    if outer == 0:
        os.close(go_write)
        os.close(said_read)
        ours.close()
        _outer(spec, steps, programs_bpf, go_read, said_write, theirs, servers)
    theirs.close()
    os.close(go_read)
    os.close(said_write)
    init = struct.unpack("=i", _read(said_read, 4))[0]
    os.waitpid(outer, 0)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    os.write(go_write, b"g")
    # While the walls are put up, what mediates is imported; nothing of it can be read later,
    # where a capability was needed for it.
    from safeclaw.sandbox import files, identity, interrupt, outside, programs
    from safeclaw.sandbox.mediator import Mediator
    from safeclaw.sandbox.messages import Messages
    from safeclaw.sandbox.network import Network

    agent, listener_number = struct.unpack("=ii", _read(said_read, 8))
    inner_pidfd = os.pidfd_open(_host_pid(init, agent))
    # calls that wait hold descriptors here; the agent's own limit is left as it was
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    listener = linux.pidfd_getfd(inner_pidfd, listener_number)
    root = os.open(f"/proc/{_host_pid(init, agent)}/root", os.O_PATH | os.O_CLOEXEC)
    linux.drop_capabilities()
    os.umask(0)
    mediator = Mediator(listener, root, filters.numbers, gate)
    mediator.first_program = spec.command
    interrupt.prepare()
    bound = names.system_names()
    with ours:
        _, fds, _, _ = socket.recv_fds(ours, 1, 2 * len(servers))
    sockets = [socket.socket(fileno=fd) for fd in fds]
    network = Network(outside.cookie(sockets[0]), servers, bound)
    messages = Messages(network)
    for table in (
        *(files.handlers(), programs.handlers(), identity.handlers()),
        *(network.handlers(), messages.handlers()),
    ):
        mediator.register(table)
    session = Session(init, mediator)
    try:
        gate.started(describe(spec, steps, abi))
    except BaseException:
        session.kill()
        raise
    names.NameServer(sockets, bound, gate, init).start()
    threading.Thread(
        target=_mediate, args=(mediator, session), name="mediator", daemon=True
    ).start()
    os.write(go_write, b"e")
    os.close(go_write)
    failure = _read_all(said_read)
    if failure:
        session.kill()
        session.wait()
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
        session.kill()
        mediator.gate.violation(
            Attempt("sandbox.defect", OtherTarget("mediator")),
            pid=0,
            exe="",
            reason=f"stopped, for a defect in safeclaw: {type(problem).__name__}: {problem}",
        )


def describe(spec: LaunchSpec, steps: tuple[walls.Step, ...], abi: int) -> dict[str, object]:
    """Return what was put up, for a person and for the session's first record."""
    return {
        "namespaces": list(walls.NAMESPACE_NAMES),
        "landlock_abi": abi,
        "seccomp": ["refusals", "allow-list"],
        "no_new_privs": True,
        "network": "host sockets by rule" if spec.network else "own loopback only",
        "view": [str(step) for step in steps],
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


def _read(fd: int, size: int) -> bytes:
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
                hint="user namespaces may be switched off: see safeclaw doctor",
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


def _outer(
    spec: LaunchSpec,
    steps: tuple[walls.Step, ...],
    bpf: tuple[bytes, bytes],
    go: int,
    said: int,
    theirs: socket.socket,
    servers: tuple[str, ...],
) -> NoReturn:
    """Enter the new namespaces and fork their PID 1; then be gone."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        walls.identity()
        init = os.fork()
        if init:
            os.write(said, struct.pack("=ci", b"+", init))
            os._exit(0)
        _init(spec, steps, bpf, go, said, theirs, servers)
    except BaseException as problem:
        _say(said, problem)
    os._exit(1)


def _say(said: int, problem: BaseException) -> None:
    os.write(said, b"!" + str(problem).encode("utf-8", "replace")[:2000])


def _init(
    spec: LaunchSpec,
    steps: tuple[walls.Step, ...],
    bpf: tuple[bytes, bytes],
    go: int,
    said: int,
    theirs: socket.socket,
    servers: tuple[str, ...],
) -> NoReturn:
    """PID 1: build the view, start the agent, reap, and end with its status."""
    if os.read(go, 1) != b"g":
        os._exit(1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    walls.put_up(steps, spec.workspace)
    sockets = names.listen(servers)
    socket.send_fds(theirs, [b"n"], [sock.fileno() for sock in sockets])
    for sock in (*sockets, theirs):
        sock.close()
    agent = os.fork()
    if agent == 0:
        try:
            _agent(spec, bpf, go, said)
        except BaseException as problem:
            _say(said, problem)
        os._exit(126)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.drop_capabilities()
    # only the agent may hold these, so that their end is its exec
    os.close(said)
    os.close(go)
    while True:
        pid, status = os.wait()
        if pid == agent:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def _agent(spec: LaunchSpec, bpf: tuple[bytes, bytes], go: int, said: int) -> NoReturn:
    """The agent's first process: give everything up, then exec."""
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            signal.signal(number, signal.SIG_DFL)
    keep = sorted((go, said))
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    os.closerange(keep[1] + 1, 1 << 20)
    for fd in keep:
        os.set_inheritable(fd, False)
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ruleset = landlock.build(spec.executable_roots)
    # until its own exec nothing runs here but this; the supervisor fetches the listener
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.landlock_restrict_self(ruleset)
    os.close(ruleset)
    argv = [os.fsencode(word) for word in spec.command]
    environment = {os.fsencode(k): os.fsencode(v) for k, v in spec.environment.items()}
    listener = linux.load_filter(
        bpf[1],
        linux.SECCOMP_FILTER_FLAG_NEW_LISTENER | linux.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    )
    # the refusals come second, because they refuse any further listener
    linux.load_filter(bpf[0], 0)
    # from here on every open waits for the supervisor
    os.write(said, struct.pack("=cii", b"+", os.getpid(), listener))
    if os.read(go, 1) != b"e":
        os._exit(125)
    os.close(listener)
    try:
        os.execve(argv[0], argv, environment)
    except OSError as problem:
        said_why = os.strerror(problem.errno or 0).encode()
        os.write(said, b"!%d:%b: %b" % (problem.errno or 0, argv[0], said_why))
        os._exit(126)


__all__ = ["LaunchSpec", "SafeclawError", "Session", "describe", "launch", "resolve_command"]
