"""The exec stop: a new image is compared with what was judged, before its first instruction.

The call is let through with CONTINUE only under ptrace: the new image stops there and is killed
unless its executable, argv and environment are those that were judged (ptrace(2),
PTRACE_EVENT_EXEC), and unless what else the kernel has mapped for it may be read.
"""

from __future__ import annotations

import errno
import os
import re
import signal
from collections.abc import Iterator

from safeclaw.policies.model import Attempt, Decision, FileTarget, ProgramTarget
from safeclaw.sandbox import linux
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import error

#: How many bytes of argv or environment are compared at a time, unless one word has more.
_AT_A_TIME = 128 * 1024
_PART = 8 * 1024
#: A new image has some twenty mappings; what would have more than fits here is not looked through.
_MAPS_MAX = 1024 * 1024
#: The path of each mapping in /proc/PID/maps (proc_pid_maps(5)), but of those that are of no file:
#: behind address, permissions, offset, device and inode.
_MAPPED = re.compile(rb"^(?:[^ ]+ ){4}(?!0 *(?:\[.*)?$)[^ ]+ *(.*)$", re.MULTILINE)


class Image:
    """What the exec stop must find: the executable's inode, its argv and environment.

    INVARIANT: the executable is held open until it is compared: its inode's number is no other
    file's as long.
    """

    __slots__ = ("argv", "environment", "inode")

    def __init__(self, fd: int, argv: list[bytes], environment: list[bytes]) -> None:
        info = os.fstat(fd)
        self.inode = info.st_dev, info.st_ino
        self.argv = argv
        self.environment = environment

    def differs(self, pid: int) -> str | None:
        """Return what is not as approved in the stopped process ``pid``, or None."""
        found = os.stat(f"/proc/{pid}/exe")
        if (found.st_dev, found.st_ino) != self.inode:
            return f"executable is {os.readlink(f'/proc/{pid}/exe')}"
        if not _holds(f"/proc/{pid}/cmdline", self.argv):
            return "argv is not what was approved"
        if not _holds(f"/proc/{pid}/environ", self.environment):
            return "environment is not what was approved"
        return None


def _whole(path: str, limit: int) -> bytes:
    """Return a short file, or so much of it that it is more than ``limit`` bytes.

    Each exec reads three, and open() has much else to do.
    """
    fd, found = os.open(path, os.O_RDONLY | os.O_CLOEXEC), b""
    try:
        while len(found) <= limit and (part := os.read(fd, _PART)):
            found += part
    finally:
        os.close(fd)
    return found


def _holds(path: str, words: list[bytes]) -> bool:
    """Whether a file of proc(5) has these words, each with a NUL behind it, and no others."""
    if sum(map(len, words)) < _AT_A_TIME:
        all_words = b"\0".join((*words, b""))
        return _whole(path, len(all_words)) == all_words
    with open(path, "rb") as source:
        return all(source.read(len(some)) == some for some in _joined(words)) and not source.read(1)


def _joined(words: list[bytes]) -> Iterator[bytes]:
    some, size = list[bytes](), 0
    for word in words:
        some.append(word)
        size += len(word)
        if size >= _AT_A_TIME:
            yield b"\0".join((*some, b""))
            some, size = [], 0
    yield b"\0".join((*some, b""))


def _others(pid: int) -> list[bytes]:
    """Return what the kernel has mapped beside the executable: its ELF interpreter (execve(2)).

    The process stands before its first instruction, so it has mapped nothing itself.
    """
    maps = _whole(f"/proc/{pid}/maps", _MAPS_MAX)
    if len(maps) > _MAPS_MAX:
        raise error(errno.EACCES)
    found = set[bytes](_MAPPED.findall(maps))
    # as the kernel writes it there
    found.discard(os.readlink(f"/proc/{pid}/exe".encode()).replace(b"\n", b"\\012"))
    return sorted(found)


def _may_read(note: Notification, pid: int, program: str) -> bool:
    """Whether the policy lets the new image have what the kernel has mapped; recorded if not.

    SAFETY: the kernel opens the interpreter that an executable names, and runs it, unasked.  An
    agent with a program of its own may name any file there; so it is to be one that the agent
    could have read, and run, itself.

    Raises:
        OSError: EACCES: what is mapped has no name that a rule could judge.

    """
    gate, confinement = note.mediator.gate, note.mediator.resolver.confinement
    for raw in _others(pid):
        path = os.fsdecode(raw)
        # a newline is escaped in it, and a backslash is not: it is not clear what is meant
        nameless = not path.startswith("/") or "\\012" in path
        if nameless or (confinement is not None and not confinement.shows(path)):
            raise error(errno.EACCES)
        # it may have lost its name by now, or be called so
        for name in {path, path.removesuffix(" (deleted)")}:
            attempt = Attempt("file.read", FileTarget(name))
            if gate.permits(attempt):
                continue
            verdict = gate.judge(attempt, pid=note.pid, exe=program, enforced_by="exec-stop")
            if verdict.decision is not Decision.ALLOW:
                return False
    return True


def go_on(note: Notification, image: Image, target: ProgramTarget) -> None:
    """Let the judged call through, and the new image on where it is what was judged."""
    pid = note.pid
    tgid = note.caller.tgid
    # SAFETY: EXITKILL, so that a thread which ends before it has compared lets nothing run.
    linux.ptrace(linux.PTRACE_SEIZE, pid, linux.PTRACE_O_TRACEEXEC | linux.PTRACE_O_EXITKILL)
    linux.ptrace(linux.PTRACE_INTERRUPT, pid)
    # SAFETY: CONTINUE reads argv again, from memory another thread may have changed;
    # the exec stop below compares what the kernel made of it before it can run.
    note.reply(flags=linux.SECCOMP_USER_NOTIF_FLAG_CONTINUE)
    while True:
        try:
            found, status = os.waitpid(-1, linux.WALL | linux.WNOTHREAD)
        except ChildProcessError:
            return  # killed meanwhile
        if os.WIFEXITED(status) or os.WIFSIGNALED(status):
            if found == pid:
                return
            continue
        event = status >> 16
        if event == linux.PTRACE_EVENT_EXEC:
            break
        # SAFETY: an exec that succeeds stops at its event before it could return to user
        # mode, so any other stop means that it failed.  A signal is passed on, not lost.
        linux.ptrace(linux.PTRACE_DETACH, found, 0 if event else os.WSTOPSIG(status))
        return
    note.mediator.forget(pid)
    note.mediator.forget(tgid)
    try:
        difference = image.differs(tgid)
        if difference is None and _may_read(note, tgid, target.program):
            linux.ptrace(linux.PTRACE_DETACH, tgid)
            return
    except OSError as problem:
        difference = f"cannot be compared: {problem}"
    os.kill(tgid, signal.SIGKILL)
    if difference is not None:
        note.mediator.gate.violation(
            Attempt("shell.execute", target), pid=pid, exe=target.program, reason=difference
        )
