"""Messages: sendto, sendmsg and sendmmsg, carried out by the supervisor.

The name, the vectors and the control data of a message are copied once, before
anything of it is judged; its data once, just before it is sent.  Nothing blocks in
the main loop: a send that would is finished in a thread, as the caller would
wait for it.
"""

from __future__ import annotations

import ctypes
import errno
import os
import select
import socket
from collections.abc import Callable

from safeclaw.policies.model import Attempt, SocketTarget
from safeclaw.sandbox import linux, outside
from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.mediator import Handler, MustWaitError, Notification
from safeclaw.sandbox.msghdr import (
    IOV_MAX,
    SOCKADDR_MAX,
    TRANSFER_MAX,
    Control,
    Message,
    read_header,
    transmit,
)
from safeclaw.sandbox.network import (
    INET,
    Network,
    family_of,
    inet,
    require_kernel,
    sockaddr_un,
    sun_path,
)
from safeclaw.sandbox.pinning import pin
from safeclaw.sandbox.resolve import Pinned, error

MSG_FASTOPEN = 0x20000000
#: As much as a datagram of the internet's holds, its headers included.
_DATAGRAM_MAX = 0xFFFF
#: How much of a stream's data is held at a time.
_CHUNK = 256 * 1024
#: A stream that does not block takes this much at most: its reader may be as fast as we are.
_AT_ONCE_MAX = 4 * 1024 * 1024
_SIGPIPE = 13
_libc = ctypes.CDLL(None)


class _Sending:
    """One call under way: what is sent, and how far.  Owns its duplicate of the socket.

    ``read`` copies a message, by its place among ``count``: as the kernel does, each when its turn
    comes.  The headers of a whole call can be 200 MB here, and many calls may wait.
    """

    def __init__(
        self,
        network: Network,
        note: Notification,
        read: Callable[[int], Message],
        flags: int,
        *,
        count: int | None,
    ) -> None:
        self._network = network
        self._note = note
        self._read = read
        self._flags = flags
        self._many = count is not None
        self._count = 1 if count is None else count
        self._done = 0
        self._message: Message | None = None
        # Of the message under way: the name as judged (None before), and what has left.
        self._name: bytes | None = None
        self._sent = 0
        self._pinned: Pinned | None = None
        self._sock = outside.duplicate(note, note.int_arg(0))
        self._blocks = not flags & socket.MSG_DONTWAIT and os.get_blocking(self._sock.fileno())

    def begin(self) -> int | None:
        """Send what can be sent at once; the rest in a thread, if the caller would wait."""
        try:
            result = self._run(wait=False)
        except (_WouldWaitError, MustWaitError):
            pass  # what was sent before is not sent again
        except BaseException:
            self._close()
            raise
        else:
            self._close()
            return result
        try:
            self._note.mediator.background(self._note, self._finish)
        except BaseException:
            self._close()
            raise
        return None

    def _finish(self) -> int:
        try:
            return self._run(wait=True)
        finally:
            self._close()

    def _close(self) -> None:
        self._sock.close()
        if self._pinned is not None:
            self._pinned.__exit__()
            self._pinned = None

    def _run(self, *, wait: bool) -> int:
        while self._done < self._count:
            try:
                message = self._message or self._read(self._done)
                self._message = message
                sent = self._one(message, wait=wait)
                if message.report:
                    self._note.check_alive()
                    linux.write_memory(self._note.pid, message.report, sent.to_bytes(4, "little"))
            except OSError:
                if self._done:
                    return self._done
                raise
            if not self._many:
                return sent
            self._done += 1
            self._message = None
        return self._done

    def _one(self, message: Message, *, wait: bool) -> int:
        if self._name is not None:
            return self._deliver(message, self._name, wait=wait)
        name = message.name
        stream = self._sock.type == socket.SOCK_STREAM
        if self._flags & MSG_FASTOPEN:
            # tcp(7): what a system answers that has it switched off; programs then connect
            raise error(errno.EOPNOTSUPP)
        if not name or (stream and self._sock.family in INET):
            # SAFETY: a connected stream pays no heed to a name; dropped, it never will
            return self._judged(message, b"", wait=wait)
        if self._sock.family in INET:
            return self._judged(message, self._inet(name), wait=wait)
        if self._sock.family == socket.AF_NETLINK:
            # SAFETY: of a message with a name the kernel asks what its sender may, and in the
            # agent's namespaces, which are its user's, the supervisor may anything.  Of one
            # without it asks what the socket's maker may, too (netlink_capable()).
            require_kernel(name)
            return self._judged(message, b"", wait=wait)
        if self._sock.family != socket.AF_UNIX:
            raise error(errno.EAFNOSUPPORT)
        if stream:
            return self._judged(message, name, wait=wait)  # EISCONN or EOPNOTSUPP (unix(7))
        if self._sock.type == socket.SOCK_SEQPACKET:
            return self._judged(message, b"", wait=wait)  # the kernel pays no heed to it
        if family_of(name) != socket.AF_UNIX:
            raise error(errno.EINVAL)
        path = sun_path(name)
        if path[:1] in (b"\0", b""):
            self._network.abstract(self._note, "network.send", self._sock, path or b"\0")
            return self._judged(message, name[:2] + path, wait=wait)
        if self._pinned is not None:
            self._pinned.__exit__()
            self._pinned = None
        self._pinned = pin(self._note, "network.send", linux.AT_FDCWD, os.fsdecode(path))
        self._note.judge(Attempt("network.send", SocketTarget(self._pinned.path)))
        return self._judged(message, sockaddr_un(f"/proc/self/fd/{self._pinned.fd}"), wait=wait)

    def _judged(self, message: Message, name: bytes, *, wait: bool) -> int:
        self._name = name
        return self._deliver(message, name, wait=wait)

    def _inet(self, name: bytes) -> bytes:
        """Judge where a datagram goes, move the socket there, and return the name to use."""
        family = family_of(name)
        if family == socket.AF_UNSPEC:
            # the kernel takes it as AF_INET on an IPv4 socket, and as no name on an IPv6 one
            if self._sock.family == socket.AF_INET6:
                return b""
            family = socket.AF_INET
        if family not in INET:
            raise error(errno.EAFNOSUPPORT)
        to = inet(name, v4=family == socket.AF_INET)
        if self._network.judge(self._note, "network.send", self._sock, to):
            old = self._sock
            new = outside.like(old)
            try:
                outside.put(self._note, self._note.int_arg(0), old, new)
            except BaseException:
                new.close()
                raise
            self._sock = new
            old.close()
        return name

    def _deliver(self, message: Message, name: bytes, *, wait: bool) -> int:
        size = message.size
        stream = self._sock.type == socket.SOCK_STREAM
        if not stream and size > self._largest():
            raise error(errno.EMSGSIZE)
        control = Control(self._note, message.control if not self._sent else b"")
        try:
            while True:
                take = min(size - self._sent, _CHUNK) if stream else size
                flags = self._flags
                last = self._sent + take == size
                if not last:
                    flags &= ~(socket.MSG_OOB | socket.MSG_EOR)
                try:
                    data = message.data(self._note.pid, self._sent, take)
                    # SAFETY: while this waited the caller may have ended and its number become
                    # another's; then so are the data and the descriptors.
                    self._note.check_alive()
                    self._sent += self._transmit(data, control.data, flags, name, wait=wait)
                except _WouldWaitError:
                    raise
                except OSError as problem:
                    if self._sent:
                        break
                    if problem.errno == errno.EPIPE and not flags & socket.MSG_NOSIGNAL and stream:
                        self._break_pipe()
                    raise
                control.close()
                control.data = b""
                if not stream or self._sent >= size:
                    break
                if self._blocks and not wait:
                    raise _WouldWaitError
                if not self._blocks and self._sent >= _AT_ONCE_MAX:
                    break
        finally:
            control.close()
        sent, self._sent, self._name = self._sent, 0, None
        return sent

    def _largest(self) -> int:
        """Return a size of which the kernel sends no larger message that is sent as a whole.

        SAFETY: what it would refuse is not copied: each call that waits could have that done.
        """
        if self._sock.family in INET:
            return _DATAGRAM_MAX
        return self._sock.getsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF)  # unix(7), netlink(7)

    def _transmit(self, data: bytes, control: bytes, flags: int, name: bytes, *, wait: bool) -> int:
        while True:
            try:
                return transmit(self._sock, data, control, flags, name)
            except OSError as problem:
                if problem.errno != errno.EAGAIN or not self._blocks:
                    raise
            if not wait:
                raise _WouldWaitError
            outside.wait_ready(self._note, self._sock, select.POLLOUT, socket.SO_SNDTIMEO)

    def _break_pipe(self) -> None:
        """Send the caller the SIGPIPE that the kernel would have sent it (send(2))."""
        self._note.check_alive()
        _libc.tgkill(self._note.caller.tgid, self._note.pid, _SIGPIPE)


class _WouldWaitError(Exception):
    """The caller would wait now, so the main loop must not."""


class Messages:
    """The handlers of the calls that send with a name, or may."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def send_to(self, note: Notification) -> int | None:
        """Answer sendto(2) with an address; without one it never comes here."""
        length = note.int_arg(5)
        if not 0 <= length <= SOCKADDR_MAX:
            raise error(errno.EINVAL)
        name = read_exact(note.pid, note.args[4], length)
        message = Message(name, ((note.args[1], min(note.args[2], TRANSFER_MAX)),), b"")
        return self._send(note, lambda _: message, note.int_arg(3))

    def send_msg(self, note: Notification) -> int | None:
        """Answer sendmsg(2)."""
        return self._send(note, lambda _: read_header(note.pid, note.args[1]), note.int_arg(2))

    def send_mmsg(self, note: Notification) -> int | None:
        """Answer sendmmsg(2): every address is judged, and the first refused ends the call."""

        def read(index: int) -> Message:
            return read_header(note.pid, note.args[1] + index * 64, report=True)

        count = min(note.args[2] & 0xFFFFFFFF, IOV_MAX)
        return self._send(note, read, note.int_arg(3), count=count)

    def _send(
        self,
        note: Notification,
        read: Callable[[int], Message],
        flags: int,
        *,
        count: int | None = None,
    ) -> int | None:
        return _Sending(self._network, note, read, flags, count=count).begin()

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers by the names of their calls."""
        return {"sendto": self.send_to, "sendmsg": self.send_msg, "sendmmsg": self.send_mmsg}
