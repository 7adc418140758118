"""struct msghdr and what hangs on it: copied from the caller, and sent by the supervisor.

Layouts: recvmsg(2), cmsg(3), unix(7), ip(7), ipv6(7), udp(7).
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import socket
import struct

import msgspec

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import error

#: A name longer than any sockaddr is cut, as it would be refused (struct sockaddr_storage).
SOCKADDR_MAX = 128
MSG_ZEROCOPY = 0x4000000
IOV_MAX = 1024
_CONTROL_MAX = 64 * 1024
#: The kernel's own bound on what one call transfers (MAX_RW_COUNT).
TRANSFER_MAX = 0x7FFFF000
_SCM_RIGHTS, _SCM_CREDENTIALS = 1, 2
#: Control data that chooses nothing but how a packet looks: TOS TTL PKTINFO, PKTINFO HOPLIMIT
#: TCLASS DONTFRAG, UDP_SEGMENT, TIMESTAMPING.  SAFETY: no route, no option with a route; of
#: PKTINFO the source address only.
_CONTROL = {
    socket.IPPROTO_IP: (1, 2, 8),
    socket.IPPROTO_IPV6: (50, 52, 67, 62),
    socket.IPPROTO_UDP: (103,),
    socket.SOL_SOCKET: (37,),
}
#: Where a struct in_pktinfo and a struct in6_pktinfo have the interface to send by.
_INTERFACE = {(socket.IPPROTO_IP, 8): 0, (socket.IPPROTO_IPV6, 50): 16}
_libc = ctypes.CDLL(None, use_errno=True)
_sendmsg = _libc.sendmsg
_sendmsg.restype = ctypes.c_ssize_t
_sendmsg.argtypes = (ctypes.c_int, ctypes.c_void_p, ctypes.c_int)


class MsgHdr(ctypes.Structure):
    """struct msghdr (sys/socket.h)."""

    _fields_ = (
        ("name", ctypes.c_char_p),
        ("namelen", ctypes.c_uint32),
        ("iov", ctypes.c_void_p),
        ("iovlen", ctypes.c_size_t),
        ("control", ctypes.c_char_p),
        ("controllen", ctypes.c_size_t),
        ("flags", ctypes.c_int),
    )


class Message(msgspec.Struct, frozen=True):
    """One message as the caller described it; its data is still in the caller's memory."""

    name: bytes
    vectors: tuple[tuple[int, int], ...]
    control: bytes
    report: int = 0
    """Where the length that was sent goes (sendmmsg); 0 for nowhere."""

    @property
    def size(self) -> int:
        """How many bytes of data it has."""
        return sum(length for _, length in self.vectors)

    def data(self, pid: int, offset: int, size: int) -> bytes:
        """Copy ``size`` bytes from ``offset`` on; EFAULT when they are not all there."""
        parts: list[bytes] = []
        for base, length in self.vectors:
            if not size:
                break
            if offset >= length:
                offset -= length
                continue
            take = min(length - offset, size)
            parts.append(read_exact(pid, base + offset, take))
            size -= take
            offset = 0
        return b"".join(parts)


def read_header(pid: int, address: int, *, report: bool = False) -> Message:
    """Copy a struct msghdr with its name, vectors and control data; EMSGSIZE, EINVAL, EFAULT."""
    header = read_exact(pid, address, 48)
    name, namelen, iov, iovlen, control, controllen = struct.unpack("=Qi4xQQQQ", header)
    if iovlen > IOV_MAX:
        raise error(errno.EMSGSIZE)
    if namelen < 0:
        raise error(errno.EINVAL)
    if controllen > _CONTROL_MAX:
        raise error(errno.ENOBUFS)
    vectors = list[tuple[int, int]]()
    left = TRANSFER_MAX
    for base, length in struct.iter_unpack("=QQ", read_exact(pid, iov, iovlen * 16)):
        if length >> 63:
            raise error(errno.EINVAL)
        vectors.append((base, min(length, left)))
        left -= vectors[-1][1]
    return Message(
        read_exact(pid, name, min(namelen, SOCKADDR_MAX)) if name else b"",
        tuple(vectors),
        read_exact(pid, control, controllen) if control else b"",
        address + 56 if report else 0,
    )


class Control:
    """A message's control data with the supervisor's own duplicates of what is passed on."""

    def __init__(self, note: Notification, data: bytes) -> None:
        self.data = b""
        self._owned: list[int] = []
        try:
            self._translate(note, data)
        except BaseException:
            self.close()
            raise

    def _translate(self, note: Notification, data: bytes) -> None:
        offset = 0
        while offset + 16 <= len(data):
            length, level, kind = struct.unpack_from("=Qii", data, offset)
            if length < 16 or offset + length > len(data):
                raise error(errno.EINVAL)
            body = data[offset + 16 : offset + length]
            offset += (length + 7) & ~7
            if (level, kind) == (socket.SOL_SOCKET, _SCM_RIGHTS):
                body = self._duplicates(note, body)
            elif (level, kind) == (socket.SOL_SOCKET, _SCM_CREDENTIALS):
                continue  # only the supervisor's could be given, and the kernel adds those
            elif kind not in _CONTROL.get(level, ()):
                raise error(errno.EPERM)
            elif (level, kind) in _INTERFACE:
                # SAFETY: behind another device than the route's may be another host of that
                # address.  The source address stays: without IP_FREEBIND it is one of this host's.
                at = _INTERFACE[level, kind]
                body = body[:at] + bytes(4) + body[at + 4 :]
            header = struct.pack("=Qii", 16 + len(body), level, kind)
            self.data += header + body + bytes(-len(body) % 8)

    def _duplicates(self, note: Notification, body: bytes) -> bytes:
        numbers = struct.unpack(f"={len(body) // 4}i", body[: len(body) // 4 * 4])
        if len(self._owned) + len(numbers) > 253:  # SCM_MAX_FD
            raise error(errno.EINVAL)
        pidfd = os.pidfd_open(note.caller.tgid)
        try:
            for number in numbers:
                self._owned.append(linux.pidfd_getfd(pidfd, number))
        finally:
            os.close(pidfd)
        return struct.pack(f"={len(numbers)}i", *self._owned[-len(numbers) :] if numbers else ())

    def close(self) -> None:
        """Close the duplicates."""
        while self._owned:
            os.close(self._owned.pop())


def transmit(sock: socket.socket, data: bytes, control: bytes, flags: int, name: bytes) -> int:
    """sendmsg(2) with one part; never SIGPIPE, never waiting."""
    if flags & MSG_ZEROCOPY:
        # SAFETY: the kernel goes on reading these pages after the call.  They are nobody
        # else's, and are given back only when it has let go of them too.
        pages = mmap.mmap(-1, max(len(data), 1), flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        pages.write(data)
        keep: object = (ctypes.c_char * len(pages)).from_buffer(pages)
        base = ctypes.addressof(keep)  # type: ignore[arg-type]
    else:
        keep = ctypes.c_char_p(data)
        base = ctypes.cast(keep, ctypes.c_void_p).value or 0
    vector = linux.Iovec(base, len(data))
    header = MsgHdr(
        name or None,
        len(name),
        ctypes.addressof(vector),
        1,
        control or None,
        len(control),
        0,
    )
    sent = _sendmsg(
        sock.fileno(),
        ctypes.byref(header),
        flags | socket.MSG_NOSIGNAL | socket.MSG_DONTWAIT,
    )
    code = ctypes.get_errno()
    del keep
    if sent < 0:
        raise error(code)
    return int(sent)
