"""The notify loop: takes each parked system call, has it judged, and answers it.

One loop thread serves every call that cannot block; what can (a FIFO, an exec,
a blocking connect) is moved to a thread of its own, so that one slow attempt
never stalls the others.  The listener belongs to the session that made it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import select
import threading
import time
from collections.abc import Callable

from safeclaw.policies.model import Attempt, Decision, FileTarget, OtherTarget
from safeclaw.sandbox import linux, quick
from safeclaw.sandbox.caller import Caller, Opened
from safeclaw.sandbox.gate import Gate
from safeclaw.sandbox.resolve import Resolver, error

#: How many callers are remembered: each holds a descriptor.
_CALLERS_MAX = 128
#: How many calls may wait in threads of their own.
_BACKGROUND_MAX = 512
#: How many opened names are remembered, for each program.
_OPENED_MAX = 16384
_PROGRAMS_MAX = 64
#: Whose names mean something else to each process.
_MOVING = (b"/proc/", b"/dev/")


class Notification:
    """One parked call: its id, thread, number and raw arguments."""

    __slots__ = ("args", "id", "mediator", "name", "pid")

    def __init__(
        self, mediator: Mediator, ident: int, pid: int, name: str, args: tuple[int, ...]
    ) -> None:
        self.mediator = mediator
        self.id = ident
        self.pid = pid
        self.name = name
        self.args = args

    @property
    def caller(self) -> Caller:
        """Return who made the call."""
        return self.mediator.caller(self.pid)

    def int_arg(self, index: int) -> int:
        """Return an argument the kernel takes as a C int."""
        value = self.args[index] & 0xFFFFFFFF
        return value - (1 << 32) if value & 0x80000000 else value

    def check_alive(self) -> None:
        """Raise ESRCH unless the caller still waits: its pid may be another's by now."""
        try:
            fcntl.ioctl(
                self.mediator.listener,
                linux.SECCOMP_IOCTL_NOTIF_ID_VALID,
                self.id.to_bytes(8, "little"),
            )
        except OSError:
            raise error(errno.ESRCH) from None

    def judge(
        self, attempt: Attempt, *, enforced_by: str = "seccomp-notify", alive: bool = True
    ) -> None:
        """Have the attempt judged and recorded; EACCES unless it is allowed."""
        verdict = self.mediator.gate.judge(
            attempt, pid=self.pid, exe=self.caller.exe, enforced_by=enforced_by
        )
        if verdict.decision is not Decision.ALLOW:
            raise error(errno.EACCES)
        if alive:
            self.check_alive()

    def reply(self, value: int = 0, code: int = 0, flags: int = 0) -> None:
        """Answer the call; a caller that has gone is no error."""
        try:
            fcntl.ioctl(
                self.mediator.listener,
                linux.SECCOMP_IOCTL_NOTIF_SEND,
                linux.NOTIF_RESP.pack(self.id, value, -code, flags),
            )
        except OSError as problem:
            if problem.errno != errno.ENOENT:
                raise

    def send_descriptor(self, fd: int, *, cloexec: bool, number: int | None = None) -> None:
        """Put ``fd`` into the caller and return it as the call's result, at once."""
        flags = linux.SECCOMP_ADDFD_FLAG_SEND
        if number is not None:
            flags |= linux.SECCOMP_ADDFD_FLAG_SETFD
        fcntl.ioctl(
            self.mediator.listener,
            linux.SECCOMP_IOCTL_NOTIF_ADDFD,
            linux.NOTIF_ADDFD.pack(self.id, flags, fd, number or 0, os.O_CLOEXEC if cloexec else 0),
        )


#: A handler returns the call's value, or None when it has answered (or will) itself.
Handler = Callable[[Notification], int | None]


class Mediator:
    """Serves one listener until every process of the agent has gone."""

    def __init__(self, listener: int, root: int, numbers: dict[int, str], gate: Gate) -> None:
        self.listener = listener
        self.resolver = Resolver(root)
        self.gate = gate
        self._numbers = numbers
        self._handlers: dict[str, Handler] = {}
        self._callers: dict[int, Caller] = {}
        # Guards what is put into the three below; looking up needs no lock.
        self._remembering = threading.Lock()
        self._forgotten = 0
        self._opened: dict[str, dict[bytes, Opened]] = {}
        self._room = threading.BoundedSemaphore(_BACKGROUND_MAX)
        #: Names that were regular files: a hint that one open will do, never a verdict.
        self.plain: set[str] = set()
        #: The argv that the session starts with, until its exec has been judged.
        self.first_program: tuple[str, ...] | None = None

    def register(self, handlers: dict[str, Handler]) -> None:
        """Add the handlers for some calls, by name."""
        self._handlers.update(handlers)

    def caller(self, pid: int) -> Caller:
        """Return the caller, from memory where possible; exec and exit forget it."""
        known = self._callers.get(pid)
        if known is not None and known.is_current(time.monotonic_ns()):
            return known
        forgotten = self._forgotten
        known = Caller(pid)
        with self._remembering:
            known.opened = self._opened_by(known.exe)
            # SAFETY: one that was read before an exec, and is put here after it, would stay.
            if forgotten == self._forgotten:
                if len(self._callers) >= _CALLERS_MAX:
                    self._callers.clear()
                known.keep_memory()
                self._callers[pid] = known
        return known

    def forget(self, pid: int) -> None:
        """Forget what a process was, because it is about to be another program."""
        with self._remembering:
            self._forgotten += 1
            self._callers.pop(pid, None)

    def _opened_by(self, exe: str) -> dict[bytes, Opened]:
        if len(self._opened) >= _PROGRAMS_MAX:
            self._opened.clear()
        return self._opened.setdefault(exe, {})

    def remember(self, caller: Caller, path: str, target: FileTarget, enforced_by: str) -> None:
        """Have the short way open ``path`` from now on, which was judged as the target."""
        name, real = os.fsencode(path), os.fsencode(target.path)
        if name.startswith(_MOVING) or real.startswith(_MOVING):
            return
        known = caller.opened.get(name)
        if known is not None and known.real == real:
            return
        attempt = Attempt("file.read", target)
        handover = self.gate.repeatable(attempt, exe=caller.exe, enforced_by=enforced_by)
        if handover is None:
            return
        if len(caller.opened) >= _OPENED_MAX:
            caller.opened.clear()
        caller.opened[name] = Opened(real, handover, literal=real == name)

    def background(self, note: Notification, work: Callable[[], int | None]) -> None:
        """Finish ``note`` in a thread of its own."""

        def handler(_: Notification) -> int | None:
            return work()

        def run() -> None:
            try:
                self._answer(note, handler)
            finally:
                self._room.release()

        # SAFETY: bounded, so that calls which wait for ever cannot use up the supervisor.
        if not self._room.acquire(blocking=False):
            raise error(errno.EAGAIN)
        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError:
            self._room.release()
            raise error(errno.EAGAIN) from None

    def serve(self) -> None:
        """Answer notifications until the listener hangs up."""
        # before Linux 6.6 there is no such flag: slower, not weaker
        with contextlib.suppress(OSError):
            fcntl.ioctl(
                self.listener,
                linux.SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                linux.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
            )
        openat = next(number for number, name in self._numbers.items() if name == "openat")
        quickly = quick.reader(self.listener, self.resolver.root, openat, self._callers, self._fail)
        # SAFETY: the kernel wants zeros (seccomp_unotify(2)); ioctl answers with a copy.
        blank = bytes(linux.NOTIF.size)
        receive, listener, ioctl = linux.SECCOMP_IOCTL_NOTIF_RECV, self.listener, fcntl.ioctl
        while True:
            try:
                buffer = ioctl(listener, receive, blank)
            except OSError as problem:
                if problem.errno in (errno.EINTR, errno.ENOENT) and not self._hung_up():
                    continue
                return
            if quickly(buffer):
                continue
            ident, pid, _, number, _, _, *args = linux.NOTIF.unpack(buffer)
            name = self._numbers.get(number, "")
            note = Notification(self, ident, pid, name, tuple(args))
            self._answer(note, self._handlers.get(name, _unknown))

    def _fail(self, ident: int, problem: OSError) -> None:
        Notification(self, ident, 0, "", ()).reply(code=problem.errno or errno.EIO)

    def _hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self.listener, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poller.poll(0))

    def _answer(self, note: Notification, handler: Handler) -> None:
        try:
            value = handler(note)
        except OSError as problem:
            note.reply(code=problem.errno or errno.EIO)
        except Exception as problem:
            # INVARIANT: a defect in a handler refuses the call; it never lets it through, and
            # never ends the loop: the agent's other calls would wait for ever.
            note.reply(code=errno.EPERM)
            self.gate.violation(
                Attempt("sandbox.defect", OtherTarget(note.name)),
                pid=note.pid,
                exe="",
                reason=f"refused, for a defect in safeclaw: {type(problem).__name__}: {problem}",
            )
        else:
            if value is not None:
                note.reply(value=value)


def _unknown(note: Notification) -> int | None:
    raise error(errno.ENOSYS)
