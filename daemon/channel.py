"""A SEQPACKET Unix socket that carries messages of any length, and means nothing by them.

A short message is one packet.  A long one is cut into pieces that are marked by
their first byte, which no message begins with (messages are msgpack arrays).
The owner of a channel closes it.  Sending and receiving may be done by two
threads, each by one at a time.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import os
import select
import socket
import stat
import struct
import time

from safeclaw.errors import ProtocolError

#: The longest packet; well under the default send buffer (net.core.wmem_default).
PACKET_MAX = 32 * 1024
_MORE, _LAST = b"\x00", b"\x01"
_SEND_BUFFER = 1 << 20
#: How many pieces of a long message are taken before its reader looks at how much it holds.
_PIECES_MAX = 2
_DONTWAIT = int(socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)


def peer_credentials(sock: socket.socket) -> tuple[int, int, int]:
    """Return pid, uid and gid of who connected (SO_PEERCRED, unix(7))."""
    data = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
    pid, uid, gid = struct.unpack("iII", data)
    return pid, uid, gid


def packets(message: bytes) -> list[bytes]:
    """Return the packets that carry a message."""
    if len(message) <= PACKET_MAX:
        return [message]
    step = PACKET_MAX - 1
    pieces = [message[start : start + step] for start in range(0, len(message), step)]
    return [_MORE + piece for piece in pieces[:-1]] + [_LAST + pieces[-1]]


class Channel:
    """One end of a conversation."""

    def __init__(self, sock: socket.socket, *, message_max: int) -> None:
        self.sock = sock
        # A peer that reads many messages at once needs room for them.  The kernel cuts
        # this down to net.core.wmem_max (socket(7)).
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)
        self.message_max = message_max
        self._pieces: list[bytes] = []
        self._pieces_size = 0
        self._closed = False
        self._outbox: collections.deque[bytes] = collections.deque()
        self._outbox_size = 0
        # Bound once: these are called for every attempt.
        self._sock_send = sock.send
        self._sock_recv = sock.recv

    def fileno(self) -> int:
        """Return the socket's descriptor, for a poller."""
        return self.sock.fileno()

    def send(self, message: bytes, timeout: float) -> None:
        """Send a whole message, waiting up to ``timeout`` seconds for room.

        Raises:
            TimeoutError: the peer does not read; the channel is of no use any more.
            OSError: the peer has gone.

        """
        if len(message) <= PACKET_MAX:
            try:
                self._sock_send(message, _DONTWAIT)
                return
            except BlockingIOError:
                pass
        deadline = time.monotonic() + timeout
        for packet in packets(message):
            while True:
                try:
                    self._sock_send(packet, _DONTWAIT)
                    break
                except BlockingIOError:
                    left = deadline - time.monotonic()
                    if left <= 0 or not _wait(self.sock, select.POLLOUT, left):
                        raise TimeoutError("the peer does not read") from None

    def try_send(self, message: bytes) -> bool:
        """Send a short message if there is room for it now; False when it did not leave."""
        try:
            self._sock_send(message, _DONTWAIT)
        except OSError:
            return False
        return True

    def post(self, message: bytes) -> bool:
        """Send as much as there is room for and keep the rest; True when nothing is kept."""
        self._outbox.extend(packets(message))
        self._outbox_size += len(message)
        return self.push()

    def push(self) -> bool:
        """Send what was kept, as far as there is room; True when nothing is kept.

        OSError when the peer has gone: then nothing is kept, either.
        """
        while self._outbox:
            try:
                self._sock_send(self._outbox[0], _DONTWAIT)
            except BlockingIOError:
                return False
            except OSError:
                self._outbox.clear()
                self._outbox_size = 0
                raise
            self._outbox_size -= len(self._outbox.popleft())
        self._outbox_size = 0  # the pieces of a long message have a mark more each
        return True

    @property
    def posted(self) -> int:
        """How many packets wait for room."""
        return len(self._outbox)

    @property
    def held(self) -> int:
        """How many bytes wait: for room, and for the rest of a message."""
        return self._outbox_size + self._pieces_size

    def receive(self, timeout: float | None = None) -> bytes | None:
        """Wait for a whole message; None when the peer has gone.

        Raises:
            TimeoutError: nothing came in ``timeout`` seconds.
            BrokerError: the peer sent what is no message.

        """
        while True:
            if timeout is not None and not _wait(self.sock, select.POLLIN, timeout):
                raise TimeoutError("the peer does not answer")
            try:
                packet = self._sock_recv(PACKET_MAX)
            except ConnectionResetError:
                return None
            message = self._join(packet)
            if self._closed:
                return None  # by another thread: what came before this packet has been let go of
            if message is not None:
                return message or None

    def take(self) -> bytes | None:
        """Return a message that is there; b"" when the peer has gone, None when there is none.

        None, too, while a long one is not whole: however fast its peer goes on sending, the
        caller decides anew about every few pieces of it, by :attr:`held`.

        Raises BrokerError when the peer sent what is no message.
        """
        for _ in range(_PIECES_MAX):
            try:
                packet = self._sock_recv(PACKET_MAX, _DONTWAIT)
            except BlockingIOError:
                return None
            except ConnectionResetError:
                return b""
            if packet[:1] not in (b"", _MORE, _LAST):
                return packet
            message = self._join(packet)
            if message is not None:
                return message
        return None

    def close(self) -> None:
        """Close the socket and let go of what is held; a thread in ``receive`` is woken."""
        self._closed = True
        self._pieces, self._pieces_size = [], 0
        self._outbox.clear()
        self._outbox_size = 0
        with contextlib.suppress(OSError):  # the peer was quicker
            self.sock.shutdown(socket.SHUT_RDWR)
        self.sock.close()

    def _join(self, packet: bytes) -> bytes | None:
        mark = packet[:1]
        if mark not in (_MORE, _LAST):
            if packet and self._pieces:
                raise ProtocolError("a message was broken off")
            return packet
        self._pieces.append(packet[1:])
        self._pieces_size += len(packet)
        if self._pieces_size > self.message_max:
            raise ProtocolError("a message is too long")
        if mark == _MORE:
            return None
        message = b"".join(self._pieces)
        self._pieces = []
        self._pieces_size = 0
        return message


def socket_at(directory: int, name: str) -> str:
    """Return an address for a socket in an open directory, however long its path is."""
    # sun_path holds 108 bytes (unix(7)); a path through the descriptor always fits.
    return f"/proc/self/fd/{directory}/{name}"


def listen(directory: int, name: str) -> socket.socket:
    """Return a non-blocking listener in an open directory, mode 0600; OSError.

    Replaces a socket that nobody listens on: the caller knows, it holds the start lock.
    """
    address = socket_at(directory, name)
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(address).st_mode):
            raise OSError(errno.EEXIST, f"{name} is there, and is not a socket")
        os.unlink(address)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
    try:
        listener.bind(address)
        os.chmod(address, 0o600)
        listener.listen(64)
    except BaseException:
        listener.close()
        raise
    return listener


def connect(directory: int, name: str) -> socket.socket:
    """Return a socket connected to a listener in an open directory; OSError."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    try:
        sock.connect(socket_at(directory, name))
    except BaseException:
        sock.close()
        raise
    return sock


def _wait(sock: socket.socket, event: int, seconds: float) -> bool:
    poller = select.poll()
    poller.register(sock, event)
    return bool(poller.poll(max(0.0, seconds) * 1000))
