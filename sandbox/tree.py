"""A session's processes where no PID namespace holds them: who belongs, and how all are ended.

A keeper, the session's first process, is the parent of the agent and, as a child
subreaper, of whatever is orphaned below it.  So the session is what descends
from the keeper, and nothing can leave it: see prctl(2), PR_SET_CHILD_SUBREAPER.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time

#: How deep a session may nest before nothing more is believed to belong to it.
_DEPTH_MAX = 4096
#: The pause before looking again at processes that the kernel is still taking apart, in seconds.
_PAUSE = 0.002


def _stat(pid: int) -> tuple[int, int]:
    """Return the parent of a process or thread, and when it started; zeros when it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            text = source.read()
    except OSError:
        return 0, 0
    fields = text[text.rindex(b")") + 2 :].split()  # proc_pid_stat(5): from the third on
    return int(fields[1]), int(fields[19])


def parent(pid: int) -> int:
    """Return the parent of a process or thread; 0 when it has gone."""
    return _stat(pid)[0]


def descends(keeper: int, pid: int) -> bool:
    """Whether a process is of the session; the keeper itself is not."""
    for _ in range(_DEPTH_MAX):
        pid = parent(pid)
        if pid == keeper:
            return True
        if pid <= 1:
            return False
    return False


def _look() -> dict[int, tuple[int, int]]:
    """Return every process that is seen now, with its parent and when it started."""
    found: dict[int, tuple[int, int]] = {}
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            found[int(entry)] = _stat(int(entry))
    return found


def _below(root: int, seen: dict[int, tuple[int, int]]) -> list[int]:
    children: dict[int, list[int]] = {}
    for pid, (up, _) in seen.items():
        children.setdefault(up, []).append(pid)
    found: list[int] = []
    todo = [root]
    while todo:
        more = children.get(todo.pop(), [])
        found += more
        todo += more
    return found


def kill(keeper: int) -> None:
    """Send SIGKILL to every process of the session that is seen now, the youngest first."""
    seen = _look()
    for pid in sorted(_below(keeper, seen), key=lambda pid: seen[pid][1], reverse=True):
        with contextlib.suppress(OSError):
            pidfd = os.pidfd_open(pid)
            try:
                # SAFETY: a pid may be another's by now; what started then is what was seen.
                if _stat(pid)[1] == seen[pid][1]:
                    signal.pidfd_send_signal(pidfd, signal.SIGKILL)
            finally:
                os.close(pidfd)


def end(keeper: int) -> None:
    """Kill the session until none of it is left; to be called by the keeper itself.

    INVARIANT: while one of them lives, the keeper has a child: orphans become its own.  None
    forks any more when this is called: see ``processes``.
    """
    while True:
        kill(keeper)
        try:
            while os.waitpid(-1, os.WNOHANG)[0]:
                pass
        except ChildProcessError:
            return
        time.sleep(_PAUSE)


def keep(agent: int, asked: signal.Signals, ending: int) -> int:
    """Be the keeper of ``agent``: reap, and return its status when all of the session is gone.

    SIGCHLD and ``asked`` are blocked in the caller; ``asked`` ends the session at once.  The
    descriptor ``ending`` is closed before the rest is killed, so that nothing forks any more.
    """
    status = 128 + signal.SIGKILL
    over = False
    while not over:
        over = signal.sigwait({signal.SIGCHLD, asked}) == asked
        with contextlib.suppress(ChildProcessError):
            while not over:
                pid, found = os.waitpid(-1, os.WNOHANG)
                if not pid:
                    break
                if pid == agent:
                    code = os.waitstatus_to_exitcode(found)
                    status, over = code if code >= 0 else 128 - code, True
    os.close(ending)
    end(os.getpid())
    return status


def end_filtered(supervisor: int) -> None:
    """Kill and reap what runs below this process under more filters than it: orphaned agents.

    For a supervisor whose keeper was killed from outside.  Its other children, the broker among
    them, run under no more filters than it does itself, and are left alone.
    """
    while True:
        filtered = [
            pid for pid in _below(supervisor, _look()) if _filters(pid) > _filters(supervisor)
        ]
        if not filtered:
            return
        for pid in filtered:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGKILL)
        for pid in filtered:
            if parent(pid) == supervisor:
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, 0)


def _filters(pid: int) -> int:
    """Return under how many seccomp filters a process runs (proc_pid_status(5))."""
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status", errors="replace") as source:
        for line in source:
            if line.startswith("Seccomp_filters:"):
                return int(line.split()[1])
    return 0
