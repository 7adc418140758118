"""Datagram sockets where the agent has no network of its own: deaf until a rule lets them be used.

The kernel binds such a socket to a free port, of every address of the host, as soon as anything is
to be sent, though it be to nobody (udp(7); net/ipv4/af_inet.c, ``inet_send_prepare``).  Whoever
knows the port would be heard, and no rule was asked.  So what the agent makes drops all that comes,
by a filter that cannot be taken off (socket(7), SO_LOCK_FILTER).  With the first address that a
rule allows another socket is put in its place (:mod:`~safeclaw.sandbox.outside`).
"""

from __future__ import annotations

import ctypes
import errno
import socket
import struct

from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import error

_SO_ATTACH_FILTER, _SO_LOCK_FILTER = 26, 44
_TYPE = 0xF
_FLAGS = socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK
#: struct sock_filter (linux/filter.h): BPF_RET | BPF_K of no byte at all.
_NOTHING = ctypes.create_string_buffer(struct.pack("=HBBI", 0x06, 0, 0, 0), 8)
#: struct sock_fprog.
_PROGRAM = struct.pack("@HP", 1, ctypes.addressof(_NOTHING))


def is_deaf(sock: socket.socket) -> bool:
    """Whether a socket is such a one; whoever locks a filter of their own is taken for it."""
    return sock.type == socket.SOCK_DGRAM and bool(
        sock.getsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER)
    )


def _make(note: Notification) -> None:
    """Answer socket(2) for internet datagrams."""
    family, kind, protocol = (note.int_arg(index) for index in range(3))
    if kind & ~(_TYPE | _FLAGS):
        raise error(errno.EINVAL)
    with socket.socket(family, kind & ~socket.SOCK_CLOEXEC, protocol) as sock:
        sock.setsockopt(socket.SOL_SOCKET, _SO_ATTACH_FILTER, _PROGRAM)
        sock.setsockopt(socket.SOL_SOCKET, _SO_LOCK_FILTER, 1)
        note.send_descriptor(sock.fileno(), cloexec=bool(kind & socket.SOCK_CLOEXEC))


def handlers() -> dict[str, Handler]:
    """Return the handler of socket(2)."""
    return {"socket": _make}
