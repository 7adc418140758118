"""What the supervisor knows of the process behind a notification.

Everything here is read from /proc or from the caller's memory, once, into the
supervisor's own memory; nothing is re-read after a verdict.
"""

from __future__ import annotations

import contextlib
import errno
import os
import re
import time
from collections.abc import Callable

from safeclaw.sandbox import linux
from safeclaw.sandbox.gate import Handover

PATH_MAX = 4096
_PAGE = 4096


def read_string(pid: int, address: int, limit: int = PATH_MAX) -> bytes:
    """Return the NUL-terminated bytes at ``address``; ENAMETOOLONG past ``limit``, EFAULT."""
    out = b""
    while len(out) < limit:
        # most paths are short: look at a little first, and never across a page's end
        size = min(_PAGE - (address + len(out)) % _PAGE, limit - len(out), len(out) * 15 or 256)
        try:
            chunk = linux.read_memory(pid, address + len(out), size)
        except OSError as error:
            raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error
        end = chunk.find(b"\0")
        if end >= 0:
            return out + chunk[:end]
        out += chunk
    raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))


def read_exact(pid: int, address: int, size: int) -> bytes:
    """Return exactly ``size`` bytes, or raise EFAULT."""
    try:
        data = linux.read_memory(pid, address, size) if size else b""
    except OSError as error:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT)) from error
    if len(data) != size:
        raise OSError(errno.EFAULT, os.strerror(errno.EFAULT))
    return data


#: How much of /proc/PID/status holds its first two lines, whatever the name (64 bytes, escaped).
_STATUS_HEAD = 512
#: A name's newlines are escaped there.
_IDS = re.compile(rb"^(Tgid|NStgid|NSpid):\t(.*)$", re.MULTILINE)


def _ids(pid: int) -> tuple[int, int, int]:
    """Return the thread group's id here, and both ids in their own namespace (proc_pid_status(5)).

    ESRCH when they are not there, as with a task that is exiting.
    """
    with open(f"/proc/{pid}/status", "rb", buffering=0) as source:
        fields = dict(_IDS.findall(source.read()))
    try:
        # NStgid and NSpid list the ids outermost first
        inner = [int(fields[name].split()[-1]) for name in (b"NStgid", b"NSpid")]
        return int(fields[b"Tgid"]), inner[0], inner[1]
    except KeyError:
        raise OSError(errno.ESRCH, os.strerror(errno.ESRCH)) from None


def signal_waits(pid: int) -> bool:
    """Whether a signal that the task does not block waits for it."""
    fields = dict[str, int]()
    with contextlib.suppress(OSError), open(f"/proc/{pid}/status") as source:
        for line in source:
            name, _, value = line.partition(":")
            if name in ("SigPnd", "ShdPnd", "SigBlk"):
                fields[name] = int(value, 16)
    return bool((fields.get("SigPnd", 0) | fields.get("ShdPnd", 0)) & ~fields.get("SigBlk", 0))


class Opened:
    """A name that was opened for reading and allowed: what it led to, and its record.

    ``literal``: the name is itself the canonical path, so that a walk which meets
    no symbolic link can only lead there again.
    """

    __slots__ = ("handover", "literal", "real")

    def __init__(self, real: bytes, handover: Handover, *, literal: bool) -> None:
        self.real = real
        self.handover = handover
        self.literal = literal


def _trust_ns() -> int:
    """Return for how long a pid that was looked at cannot have become another task's.

    SAFETY: pids are handed out in a circle of pid_max, one at a time under one lock, and
    none takes less than 250 ns; so a pid seen alive is nobody else's for that long.
    """
    with open("/proc/sys/kernel/pid_max") as source:
        return min(10_000_000, int(source.read()) * 250)


_TRUST_NS = _trust_ns()


def _start_time(pid: int) -> str:
    """Return when the task began (proc_pid_stat(5), field 22); "" when it has gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as source:
            # the name, in parentheses, may hold anything
            return source.read().rpartition(b")")[2].split()[19].decode()
    except (OSError, IndexError):
        return ""


class Caller:
    """One thread of the agent: its ids here and in its own namespace, and its program.

    Known until it execs (the exec stop forgets it) or until its pid is another
    task's, which :meth:`is_current` finds.  ``memory`` is /proc/PID/mem, kept
    open for as long as anybody holds this value; -1 where there is none.
    """

    __slots__ = (
        *("exe", "inner_tgid", "inner_tid", "pid", "tgid"),
        *("memory", "opened", "trusted_until", "_start"),
    )

    def __init__(self, pid: int) -> None:
        self.memory = -1
        self.opened: dict[bytes, Opened] = {}
        self.pid = pid
        self.trusted_until = time.monotonic_ns() + _TRUST_NS
        self._start = _start_time(pid)
        self.tgid, self.inner_tgid, self.inner_tid = _ids(pid)
        try:
            self.exe = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            self.exe = ""

    def __del__(self, _close: Callable[[int], None] = os.close) -> None:
        # Here and nowhere else: another thread may still be reading through it.
        if self.memory >= 0:
            _close(self.memory)

    def keep_memory(self) -> None:
        """Open the memory for reading, if that can be had."""
        with contextlib.suppress(OSError):
            self.memory = os.open(f"/proc/{self.pid}/mem", os.O_RDONLY | os.O_CLOEXEC)

    def is_current(self, now: int) -> bool:
        """Whether the pid is still this task's; ``now`` is the monotonic clock in ns.

        To be asked about a task that waits for an answer, and hence lives.
        """
        if now < self.trusted_until:
            return True
        if not self._start or _start_time(self.pid) != self._start:
            return False
        self.trusted_until = now + _TRUST_NS
        return True

    def duplicate(self, number: int) -> int:
        """Return a duplicate of one of its descriptors, which are its thread group's; EBADF, ESRCH.

        A thread that has a table of its own (clone(2)) is answered with its leader's.
        """
        pidfd = os.pidfd_open(self.tgid)
        try:
            return linux.pidfd_getfd(pidfd, number)
        finally:
            os.close(pidfd)

    def terminal(self) -> tuple[int, int]:
        """Return the session the task is in now, and its terminal's device; 0 for none."""
        with open(f"/proc/{self.pid}/stat", "rb") as source:
            fields = source.read().rpartition(b")")[2].split()
        number = int(fields[4])
        # as the kernel's new_encode_dev()
        minor = number & 0xFF | number >> 12 & 0xFFF00
        return int(fields[3]), os.makedev(number >> 8 & 0xFFF, minor) if number else 0

    def umask(self) -> int:
        """Return the thread's umask, in force now; ESRCH when the thread is exiting."""
        with open(f"/proc/{self.pid}/status", "rb", buffering=0) as source:
            # the second line; the first, a name, is short, and its newlines are escaped
            _, found, rest = source.read(_STATUS_HEAD).partition(b"\nUmask:\t")
        if not found:
            raise OSError(errno.ESRCH, os.strerror(errno.ESRCH))
        return int(rest.partition(b"\n")[0], 8)
