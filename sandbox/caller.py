"""What the supervisor knows of the process behind a notification.

Everything here is read from /proc or from the caller's memory, once, into the
supervisor's own memory; nothing is re-read after a verdict.
"""

from __future__ import annotations

import errno
import os

from safeclaw.sandbox import linux

PATH_MAX = 4096
_PAGE = 4096
_ARG_MAX = 6 * 1024 * 1024


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


def read_strings(pid: int, address: int) -> list[bytes]:
    """Return a NULL-terminated vector of strings (execve(2)'s argv and envp)."""
    out: list[bytes] = []
    total = 0
    while address:
        window = (_PAGE - address % _PAGE) // 8 or 1
        pointers = read_exact(pid, address, window * 8)
        for index in range(window):
            pointer = int.from_bytes(pointers[index * 8 : index * 8 + 8], "little")
            if not pointer:
                return out
            word = read_string(pid, pointer, 32 * _PAGE)
            total += len(word) + 9
            if total > _ARG_MAX:
                raise OSError(errno.E2BIG, os.strerror(errno.E2BIG))
            out.append(word)
        address += window * 8
    return out


def status(pid: int) -> dict[str, str]:
    """Return /proc/PID/status as a mapping (proc(5))."""
    with open(f"/proc/{pid}/status", encoding="utf-8", errors="replace") as source:
        return dict(line.rstrip("\n").split(":\t", 1) for line in source if ":\t" in line)


class Caller:
    """One thread of the agent: its ids here and in its own namespace, and its program."""

    __slots__ = ("exe", "inner_tgid", "inner_tid", "pid", "tgid")

    def __init__(self, pid: int) -> None:
        self.pid = pid
        fields = status(pid)
        self.tgid = int(fields["Tgid"])
        # NStgid and NSpid list the ids outermost first
        self.inner_tgid = int(fields["NStgid"].split()[-1])
        self.inner_tid = int(fields["NSpid"].split()[-1])
        try:
            self.exe = os.readlink(f"/proc/{pid}/exe")
        except OSError:
            self.exe = ""

    def umask(self) -> int:
        """Return the thread's umask, in force now."""
        return int(status(self.pid)["Umask"], 8)
