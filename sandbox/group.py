"""Keeps a signal of the kernel's own from the process group that the supervisor is in.

A group is orphaned when none of its members has its parent in another group of the session any
more.  If somebody in it is stopped when the last such one ends, the kernel sends all of it SIGHUP
and SIGCONT, and asks no scope (setpgid(2); kernel/exit.c, ``kill_orphaned_pgrp``).  The agent is in
that group, with whatever a script has started beside it, and could bring both about.  So one member
stays whose parent is in another group, for as long as the session.

Where there is a terminal, the shell is such a parent for its jobs.  Without a shell it is the
group's being orphaned that keeps a key from stopping it, with nobody to have it go on: there
nothing is held.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Generator

from safeclaw.errors import WallError
from safeclaw.sandbox import linux


@contextlib.contextmanager
def held() -> Generator[Callable[[], None]]:
    """Hold this process's group from before anything of the agent runs until nothing does.

    What is given is to be called before the agent runs, while there is else to do meanwhile; it
    raises WallError where the group is not held.
    """
    if _has_terminal():
        yield lambda: None
        return
    said, say = os.pipe()
    ended, ending = os.pipe()
    try:
        child = os.fork()
    except OSError as problem:
        raise _cannot_be(problem.strerror) from problem
    if child == 0:
        with contextlib.suppress(BaseException):
            os.close(ending)
            _parent(say, ended)
        os._exit(1)
    os.close(say)
    os.close(ended)

    def require() -> None:
        with open(said, "rb", buffering=0) as source:
            if not source.read(1):
                raise _cannot_be("it has ended")

    try:
        yield require
    finally:
        os.close(ending)  # not waited for: a start that failed may have left who has it, too


def _cannot_be(why: str | None) -> WallError:
    return WallError(
        f"the process group cannot be held by a process: {why}",
        hint="ulimit -u says how many processes and threads you may have: all of yours count",
    )


def _has_terminal() -> bool:
    with open("/proc/self/stat", "rb") as source:
        # proc_pid_stat(5), field 7; the name, in parentheses, may hold anything
        return source.read().rpartition(b")")[2].split()[4] != b"0"


def _parent(say: int, ended: int) -> None:
    """Be the parent, in a group of its own, until the one that stays has ended."""
    linux.prctl(linux.PR_SET_DUMPABLE, 0)
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    parent = os.getpid()
    stays = os.fork()
    if stays:
        os.setpgid(0, 0)
        os.write(say, b"+")
        _keep_only(-1)
        os.waitpid(stays, 0)
    else:
        _keep_only(ended)
        os.read(ended, 1)  # until there is no supervisor any more to close it
        # SAFETY: it leaves before it ends: it is with the last one's end that others are signalled
        os.setpgid(0, parent)
    os._exit(0)


def _keep_only(fd: int) -> None:
    """Close everything else: no pipe of anybody's is to stay open for this."""
    last = max(int(name) for name in os.listdir("/proc/self/fd"))
    os.closerange(0, max(fd, 0))
    os.closerange(fd + 1, last + 1)
    linux.drop_capabilities()
