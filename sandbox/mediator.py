"""The notify loop: takes each parked system call, has it judged, and answers it.

One loop thread serves every call that cannot block; what can (a FIFO, an exec, a
blocking connect, a verdict that somebody else has to give) is moved to a thread
of its own, so that one slow attempt never stalls the others.  Where the loop is
held up all the same (a file system that hangs), another thread goes on with it:
see :mod:`~safeclaw.sandbox.relief`.  The listener belongs to the session that
made it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import resource
import select
import struct
import sys
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from safeclaw.policies.model import Attempt, Decision, FileTarget, OtherTarget, Verdict
from safeclaw.sandbox import linux, quick
from safeclaw.sandbox.caller import Caller, Opened
from safeclaw.sandbox.gate import Gate
from safeclaw.sandbox.relief import Relief
from safeclaw.sandbox.resolve import Resolver, error

if TYPE_CHECKING:
    from safeclaw.sandbox.hosts import Hosts

#: How many callers are remembered, each with a descriptor, and how many calls may wait in
#: threads of their own, each with a few.
_CALLERS_MAX, _BACKGROUND_MAX = 128, 512
#: What part of the descriptors that this process may have each of these may use.
_CALLERS_PART, _BACKGROUND_PART = 4, 8
#: How soon the loop gets the interpreter from a thread that computes, in seconds.
_SWITCH = 0.001
#: How many opened names are remembered, and for how many programs.
_OPENED_MAX = 65536
_PROGRAMS_MAX = 64
#: include/linux/err.h
_MAX_ERRNO = 4095
#: Whose names mean something else to each process.
_MOVING = (b"/proc/", b"/dev/")


class MustWaitError(Exception):
    """The verdict is somebody else's to give, so the loop must not ask for it."""


class Notification:
    """One parked call: its id, thread, number and raw arguments."""

    __slots__ = ("args", "id", "mediator", "name", "pid", "waits")

    def __init__(
        self, mediator: Mediator, ident: int, pid: int, name: str, args: tuple[int, ...]
    ) -> None:
        self.mediator = mediator
        self.id = ident
        self.pid = pid
        self.name = name
        self.args = args
        #: Whether it has a thread of its own, which may wait.
        self.waits = False

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
        if self.decide(attempt, enforced_by).decision is not Decision.ALLOW:
            raise error(errno.EACCES)
        if alive:
            self.check_alive()

    def decide(self, attempt: Attempt, enforced_by: str) -> Verdict:
        """Return the recorded verdict.

        INVARIANT: in the loop nobody is waited for.  A handler that has to is left here, and
        called once more, from its beginning, in a thread of its own: until then it has done
        nothing for the caller, and what it read of the caller's memory is forgotten.
        """
        gate = self.mediator.gate
        if not self.waits and gate.may_wait(attempt):
            raise MustWaitError
        return gate.judge(attempt, pid=self.pid, exe=self.caller.exe, enforced_by=enforced_by)

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

    def refuse(self, code: int | None) -> None:
        """Answer with an errno, if the call still waits for an answer; never raises."""
        # one that is no errno of the kernel's would not be taken, and the caller would hang
        with contextlib.suppress(OSError, struct.error):
            self.reply(code=code if code and 0 < code < _MAX_ERRNO else errno.EIO)

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

    def add_descriptor(self, fd: int, *, cloexec: bool) -> int:
        """Put ``fd`` into the caller, which waits on; return the number that it has there."""
        request = linux.NOTIF_ADDFD.pack(self.id, 0, fd, 0, os.O_CLOEXEC if cloexec else 0)
        # what can be written to has the call's value returned (fcntl.ioctl)
        number: int = fcntl.ioctl(
            self.mediator.listener, linux.SECCOMP_IOCTL_NOTIF_ADDFD, bytearray(request)
        )
        return number


#: A handler returns the call's value, or None when it has answered (or will) itself.
Handler = Callable[[Notification], int | None]


class Mediator:
    """Serves one listener until every process of the agent has gone."""

    def __init__(self, listener: int, root: int, numbers: dict[int, str], gate: Gate) -> None:
        self.listener = listener
        self.resolver = Resolver(root)
        self._descriptors = os.open("/proc/self/fd", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        self.gate = gate
        self._numbers = numbers
        self._handlers: dict[str, Handler] = {}
        self._callers: dict[int, Caller] = {}
        # Guards what is put into the three below; looking up needs no lock.
        self._remembering = threading.Lock()
        self._forgotten = 0
        self._opened: dict[str, dict[bytes, Opened]] = {}
        self._opened_count = 0
        descriptors = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
        self._callers_max = min(_CALLERS_MAX, descriptors // _CALLERS_PART)
        self._room = threading.BoundedSemaphore(
            max(1, min(_BACKGROUND_MAX, descriptors // _BACKGROUND_PART))
        )
        #: Names that were regular files: a hint that one open will do, never a verdict.
        self.plain: set[str] = set()
        #: Mount points of the host at which it is not looked what is there (``caseless``).
        self.others: tuple[str, ...] = ()
        #: What the agent sees of the host.
        self.view: tuple[str, ...] = ("/",)
        #: What /etc/hosts is inside, where it is not the host's.
        self.hosts: Hosts | None = None
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
                if len(self._callers) >= self._callers_max:
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

    def _forget_opened(self) -> None:
        with self._remembering:
            for names in (*self._opened.values(), *(one.opened for one in self._callers.values())):
                names.clear()
            self._opened_count = 0

    def remember(self, caller: Caller, path: str, target: FileTarget, enforced_by: str) -> None:
        """Have the short way open ``path`` from now on, which was judged as the target."""
        name, real = os.fsencode(path), os.fsencode(target.path)
        if len(name) >= quick.PATH_MAX or name.startswith(_MOVING) or real.startswith(_MOVING):
            return
        known = caller.opened.get(name)
        if known is not None and known.real == real:
            return
        attempt = Attempt("file.read", target)
        handover = self.gate.repeatable(attempt, exe=caller.exe, enforced_by=enforced_by)
        if handover is None:
            return
        if self._opened_count >= _OPENED_MAX:
            self._forget_opened()
        self._opened_count += 1
        caller.opened[name] = Opened(real, handover, literal=real == name)

    def background(self, note: Notification, work: Callable[[], int | None]) -> None:
        """Finish ``note`` in a thread of its own; EAGAIN when there are too many."""

        def handler(_: Notification) -> int | None:
            return work()

        if note.waits:
            self._answer(note, handler)  # it has one
        else:
            self._apart(note, handler)

    def _apart(self, note: Notification, handler: Handler) -> None:
        def run() -> None:
            try:
                self._answer(note, handler)
            finally:
                self._room.release()

        # SAFETY: bounded, so that calls which wait for ever cannot use up the supervisor.
        if not self._room.acquire(blocking=False):
            raise error(errno.EAGAIN)
        note.waits = True
        try:
            threading.Thread(target=run, daemon=True).start()
        except RuntimeError:
            self._room.release()
            raise error(errno.EAGAIN) from None

    def serve(self) -> None:
        """Answer notifications until the listener hangs up.

        Raises:
            OSError: the listener is of no use any more, though the agent lives.

        """
        sys.setswitchinterval(_SWITCH)
        # each would keep what its threads have given back: megabytes, after a large exec
        linux.share_arenas(1)
        # before Linux 6.6 there is no such flag: slower, not weaker
        with contextlib.suppress(OSError):
            fcntl.ioctl(
                self.listener,
                linux.SECCOMP_IOCTL_NOTIF_SET_FLAGS,
                linux.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP,
            )
        Relief(self._loop).run()

    def _loop(self, relief: Relief, mine: int) -> None:
        """Serve until the listener hangs up, or until ``relief`` has given the turn away."""
        openat = next(number for number, name in self._numbers.items() if name == "openat")
        quickly = quick.reader(
            self.listener, self.resolver.root, self._descriptors, openat, self._callers, self._fail
        )
        # SAFETY: the kernel wants zeros (seccomp_unotify(2)); ioctl answers with a copy.
        blank = bytes(linux.NOTIF.size)
        receive, listener, ioctl = linux.SECCOMP_IOCTL_NOTIF_RECV, self.listener, fcntl.ioctl
        unpack, numbers, handlers = linux.NOTIF.unpack, self._numbers, self._handlers
        while relief.turn == mine:
            try:
                buffer = ioctl(listener, receive, blank)
            except OSError as problem:
                if self._hung_up():
                    return
                if problem.errno in (errno.EINTR, errno.ENOENT):
                    continue
                raise
            relief.busy = buffer
            if not relief.awake:
                relief.wake()
            if not quickly(buffer):
                ident, pid, _, number, _, _, *args = unpack(buffer)
                name = numbers.get(number, "")
                note = Notification(self, ident, pid, name, tuple(args))
                self._answer(note, handlers.get(name, _unknown))
            if relief.turn == mine:
                relief.busy = None

    def _fail(self, ident: int, problem: Exception) -> None:
        """Refuse a call, by its id, that the short way could not finish."""
        note = Notification(self, ident, 0, "", ())
        if isinstance(problem, OSError):
            note.refuse(problem.errno)
        else:
            self._defect(note, problem)

    def _hung_up(self) -> bool:
        poller = select.poll()
        poller.register(self.listener, select.POLLIN)
        return any(event & select.POLLHUP for _, event in poller.poll(0))

    def _answer(self, note: Notification, handler: Handler) -> None:
        """Have a handler answer; never raises.

        INVARIANT: a defect in a handler refuses the call; it never lets it through, and never
        ends the loop: the agent's other calls would wait for ever.
        """
        try:
            try:
                value = handler(note)
            except MustWaitError:
                self._apart(note, handler)
            else:
                if value is not None:
                    note.reply(value=value)
        except OSError as problem:
            note.refuse(problem.errno)
        except Exception as problem:
            self._defect(note, problem)

    def _defect(self, note: Notification, problem: Exception) -> None:
        note.refuse(errno.EPERM)
        self.gate.violation(
            Attempt("sandbox.defect", OtherTarget(note.name)),
            pid=note.pid,
            exe="",
            reason=f"refused, for a defect in safeclaw: {type(problem).__name__}: {problem}",
        )


def _unknown(note: Notification) -> int | None:
    raise error(errno.ENOSYS)
