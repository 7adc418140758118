"""The first processes of a session: those that put up the walls, on the agent's side.

``outer`` (full isolation) enters the new namespaces and forks their PID 1, which
builds the view, forks the agent and reaps; ``keeper`` (landlock isolation) is
what stands in PID 1's place where there are no namespaces.  Both end when the
supervisor does, and everything of the session with them.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import struct
from collections.abc import Callable
from typing import NoReturn

import msgspec

from safeclaw.sandbox import landlock, limits, linux, names, tree, walls
from safeclaw.sandbox.spec import LaunchSpec


class Pipes(msgspec.Struct, frozen=True):
    """How supervisor and first processes talk: ``go`` is read, ``said`` is written."""

    go: int
    said: int


def outer(
    spec: LaunchSpec,
    steps: tuple[walls.Step, ...],
    pipes: Pipes,
    theirs: socket.socket,
    servers: tuple[str, ...],
) -> NoReturn:
    """Enter the new namespaces and fork their PID 1; then be gone."""
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN if number == signal.SIGINT else signal.SIG_DFL)
        limits.enter(spec.cgroup)
        walls.identity()
        init = os.fork()
        if init:
            os.write(pipes.said, struct.pack("=ci", b"+", init))
            os._exit(0)
        _init(spec, steps, pipes, theirs, servers)
    except BaseException as problem:
        _say(pipes.said, problem)
    os._exit(1)


def _say(said: int, problem: BaseException) -> None:
    # INVARIANT: never raises: whoever calls it ends next, and must not go on as the supervisor
    with contextlib.suppress(OSError):
        os.write(said, b"!" + str(problem).encode("utf-8", "replace")[:2000])


def _init(
    spec: LaunchSpec,
    steps: tuple[walls.Step, ...],
    pipes: Pipes,
    theirs: socket.socket,
    servers: tuple[str, ...],
) -> NoReturn:
    """PID 1: build the view, start the agent, reap, and end with its status."""
    if os.read(pipes.go, 1) != b"g":
        os._exit(1)
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGKILL)
    walls.put_up(steps, spec.workspace)
    sockets = names.listen(servers)
    socket.send_fds(theirs, [b"n"], [sock.fileno() for sock in sockets])
    for sock in (*sockets, theirs):
        sock.close()
    agent = _fork_agent(spec, pipes)
    while True:
        pid, status = os.wait()
        if pid == agent:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def keeper(spec: LaunchSpec, pipes: Pipes, ending: int, clear: Callable[[], None]) -> NoReturn:
    """Be the parent of the agent and of all its orphans; end them all when it ends.

    ``clear`` is called when the last has gone: the supervisor may have gone before.

    SAFETY: no PID namespace ends the session with the supervisor.  The keeper is told by
    PR_SET_PDEATHSIG; Landlock keeps the agent from sending it anything.  ``ending`` is held by
    nobody else: when it closes, the supervisor lets nothing fork any more.
    """
    try:
        for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        asked = signal.SIGTERM
        signal.signal(asked, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD, asked})
        limits.enter(spec.cgroup)
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
        linux.prctl(linux.PR_SET_PDEATHSIG, asked)
        # the pipe ends with the supervisor: were it gone before the line above, nothing is read
        if os.read(pipes.go, 1) != b"g":
            os._exit(1)
        os.chdir(spec.workspace)
        agent = _fork_agent(spec, pipes)
        status = tree.keep(agent, asked, ending)
        clear()
        os._exit(status)
    except BaseException as problem:
        _say(pipes.said, problem)
    os._exit(1)


def _fork_agent(spec: LaunchSpec, pipes: Pipes) -> int:
    agent = os.fork()
    if agent == 0:
        try:
            _agent(spec, pipes)
        except BaseException as problem:
            _say(pipes.said, problem)
        os._exit(126)
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    linux.drop_capabilities()
    # only the agent may hold these, so that their end is its exec
    os.close(pipes.said)
    os.close(pipes.go)
    return agent


def _agent(spec: LaunchSpec, pipes: Pipes) -> NoReturn:
    """The agent's first process: give everything up, then exec."""
    go, said = pipes.go, pipes.said
    assert spec.filters is not None
    if not landlock.has_scopes():
        _own_group()
    for number in range(1, signal.NSIG):
        if number not in (signal.SIGKILL, signal.SIGSTOP, 32, 33):
            ignored = number in spec.ignored
            signal.signal(number, signal.SIG_IGN if ignored else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, spec.signals)
    keep = sorted((go, said))
    os.closerange(3, keep[0])
    os.closerange(keep[0] + 1, keep[1])
    # a caller's limit may have been higher than any limit is now
    os.closerange(keep[1] + 1, 1 + max(int(name) for name in os.listdir("/proc/self/fd")))
    for fd in keep:
        os.set_inheritable(fd, False)
    limits.set_own(spec.rlimits)
    ruleset = landlock.build(spec.executable_roots)
    # until its own exec nothing runs here but this; the supervisor fetches the listener
    linux.prctl(linux.PR_SET_DUMPABLE, 1)
    limits.hold_core()
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
    linux.landlock_restrict_self(ruleset)
    os.close(ruleset)
    argv = [os.fsencode(word) for word in spec.command]
    environment = {os.fsencode(k): os.fsencode(v) for k, v in spec.environment.items()}
    listener = linux.load_filter(
        spec.filters.allow_list,
        linux.SECCOMP_FILTER_FLAG_NEW_LISTENER | linux.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV,
    )
    # the refusals come second, because they refuse any further listener
    linux.load_filter(spec.filters.refusals, 0)
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


def _own_group() -> None:
    """Leave the supervisor's process group, and take the terminal along.

    SAFETY: kill(2) with pid 0 reaches outside a PID namespace: the whole group.  Where Landlock
    has no signal scope (before ABI 6), the agent must have a group of its own.
    """
    os.setpgid(0, 0)
    signal.signal(signal.SIGTTOU, signal.SIG_IGN)
    with contextlib.suppress(OSError):
        os.tcsetpgrp(0, os.getpgrp())
