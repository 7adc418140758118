"""Commands of the operator's that the broker starts, and does not wait for.

What it has to tell is on the command's standard input, as one line of JSON.  The
broker never blocks on a hook, and no hook can answer for a person: it may page one.
"""

from __future__ import annotations

import contextlib
import os
import signal

import msgspec

_ENVIRONMENT = ("PATH", "LANG", "HOME")
_RUNNING_MAX = 32
#: How many of them one user's questions may keep busy.
_USERS_MAX = 16
#: What runs, by what name and on whose account; what has failed and was not told yet.
_running: dict[int, tuple[str, int | None]] = {}
_failures: list[str] = []


def spawn(command: tuple[str, ...], tells: object, whose: int | None = None) -> str | None:
    """Start a command; return why it could not be.

    ``whose`` is the user who is the reason for it: one user's take no place from another's,
    nor from alerts, which are nobody's.
    """
    reap()
    if not command:
        return None
    others = [one for _, one in _running.values() if (one is None) == (whose is None)]
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
    _running[pid] = command[0], whose
    return None


def reap() -> None:
    """Let go of the commands that have ended, and keep which of them failed."""
    for pid, (name, _) in list(_running.items()):
        try:
            ended, status = os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            ended, status = pid, 0
        if ended:
            del _running[pid]
            code = os.waitstatus_to_exitcode(status)
            if code != 0:
                how = f"with status {code}" if code > 0 else f"by signal {-code}"
                _failures.append(f"{name}: ended {how}")


def failures() -> list[str]:
    """Return, once, which commands have failed since the last time."""
    reap()
    found = list(_failures)
    _failures.clear()
    return found
