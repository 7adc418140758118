"""Commands of the operator's that the broker starts, and does not wait for.

What it has to tell is on the command's standard input, as one line of JSON.  The
broker never blocks on a hook, and no hook can answer for a person: it may page one.  Whoever
runs it calls :func:`failures` when :func:`next_due` says so and when a child has ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from typing import NamedTuple

import msgspec

_ENVIRONMENT = ("PATH", "LANG", "HOME")
_RUNNING_MAX = 32
#: How many of them one user's questions may keep busy.
_USERS_MAX = 16
#: How long a hook may run, in seconds.  Those that hang would take the place of all to come.
LIMIT = 60.0


class _Hook(NamedTuple):
    """A hook that runs: its name, on whose account, and since when (monotonic)."""

    name: str
    whose: int | None
    began: float


_running: dict[int, _Hook] = {}
#: Those of them that were killed and have not ended yet.
_killed: set[int] = set()
#: What has failed and was not told yet.
_failures: list[str] = []


def spawn(command: tuple[str, ...], tells: object, whose: int | None = None) -> str | None:
    """Start a command; return why it could not be.

    ``whose`` is the user who is the reason for it: one user's take no place from another's,
    nor from alerts, which are nobody's.
    """
    reap()
    if not command:
        return None
    others = [hook.whose for hook in _running.values() if (hook.whose is None) == (whose is None)]
    if len(others) >= _RUNNING_MAX:
        return f"{command[0]}: {_RUNNING_MAX} hooks are running already"
    if whose is not None and others.count(whose) >= _USERS_MAX:
        return f"{command[0]}: {_USERS_MAX} hooks for this user's questions are running already"
    environment = {name: os.environ[name] for name in _ENVIRONMENT if name in os.environ}
    try:
        with contextlib.ExitStack() as stack:
            stdin = os.memfd_create("hook", os.MFD_CLOEXEC)
            stack.callback(os.close, stdin)
            null = os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC)
            stack.callback(os.close, null)
            with contextlib.suppress(OSError):
                os.write(stdin, msgspec.json.encode(tells) + b"\n")
                os.lseek(stdin, 0, os.SEEK_SET)
            pid = os.posix_spawnp(
                command[0],
                command,
                environment,
                file_actions=[
                    (os.POSIX_SPAWN_DUP2, stdin, 0),
                    (os.POSIX_SPAWN_DUP2, null, 1),
                ],
                setsigdef=[signal.SIGPIPE, signal.SIGCHLD, signal.SIGINT, signal.SIGTERM],
                setpgroup=0,
            )
    except OSError as problem:
        return f"{command[0]}: {problem.strerror}"
    _running[pid] = _Hook(command[0], whose, time.monotonic())
    return None


def reap() -> None:
    """Let go of the commands that have ended, kill those that run too long; keep who failed."""
    now = time.monotonic()
    for pid, hook in list(_running.items()):
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended, status = pid, 0
        if ended:
            del _running[pid]
            code = os.waitstatus_to_exitcode(status)
            if pid in _killed:
                _killed.remove(pid)
                _failures.append(f"{hook.name}: killed, it ran for more than {LIMIT:.0f} s")
            elif code != 0:
                how = f"with status {code}" if code > 0 else f"by signal {-code}"
                _failures.append(f"{hook.name}: ended {how}")
        elif pid not in _killed and now >= hook.began + LIMIT:
            _killed.add(pid)
            # SAFETY: not waited for yet, so the number is still this group's.
            with contextlib.suppress(OSError):  # it has become another user
                os.killpg(pid, signal.SIGKILL)


def next_due() -> float | None:
    """Return in how many seconds a command will have run for too long."""
    due = [hook.began + LIMIT for pid, hook in _running.items() if pid not in _killed]
    return max(0.0, min(due) - time.monotonic()) if due else None


def failures() -> list[str]:
    """Return, once, which commands have failed since the last time."""
    reap()
    found = list(_failures)
    _failures.clear()
    return found
