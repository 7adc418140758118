"""Sockets of the host's network: made by the supervisor, put in an agent's socket's place.

Every socket that the agent makes lives in its own, empty network namespace.
Once a rule has allowed it an address outside, the supervisor makes a like one
in the host's namespace and puts it where the agent's was: at every number that
this process has for it, and into every epoll instance that watches it.
See docs/adr/network-outside-sockets.md.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import os
import re
import select
import socket
import struct
import sys
import threading

from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import signal_waits
from safeclaw.sandbox.mediator import Notification
from safeclaw.sandbox.resolve import error

SO_COOKIE, SO_NETNS_COOKIE = 57, 71
_CLONE_FILES = 0x400
_EPOLL_CTL_ADD = 1
_WAKE_MS = 100
_libc = ctypes.CDLL(None, use_errno=True)
#: What a program may have set before its first connect (socket(7), ip(7), ipv6(7), tcp(7)).
#: Not here: whatever names a device, a route or a group, or needs a capability.
_COPIED: tuple[tuple[int, tuple[int, ...]], ...] = (
    # REUSEADDR BROADCAST KEEPALIVE OOBINLINE PRIORITY LINGER REUSEPORT RCVLOWAT RCVTIMEO
    # SNDTIMEO TIMESTAMP TIMESTAMPNS TIMESTAMPING RXQ_OVFL ZEROCOPY
    (socket.SOL_SOCKET, (2, 6, 9, 10, 12, 13, 15, 18, 20, 21, 29, 35, 37, 40, 60)),
    # TOS TTL PKTINFO MTU_DISCOVER RECVERR RECVTTL RECVTOS BIND_ADDRESS_NO_PORT
    # MULTICAST_TTL MULTICAST_LOOP
    (socket.IPPROTO_IP, (1, 2, 8, 10, 11, 12, 13, 24, 33, 34)),
    # UNICAST_HOPS MULTICAST_HOPS MULTICAST_LOOP MTU_DISCOVER RECVERR V6ONLY RECVPKTINFO
    # RECVHOPLIMIT RECVTCLASS TCLASS
    (socket.IPPROTO_IPV6, (16, 18, 19, 23, 25, 26, 49, 51, 66, 67)),
    # NODELAY CORK KEEPIDLE KEEPINTVL KEEPCNT SYNCNT LINGER2 QUICKACK CONGESTION USER_TIMEOUT
    # NOTSENT_LOWAT
    (socket.IPPROTO_TCP, (1, 3, 4, 5, 6, 7, 8, 12, 13, 18, 25)),
)
#: The kernel answers with twice what was asked for (socket(7)).
_DOUBLED = (socket.SO_SNDBUF, socket.SO_RCVBUF)
_TFD = re.compile(r"tfd:\s*(\d+) events:\s*([0-9a-f]+) data:\s*([0-9a-f]+)")


class EpollEvent(ctypes.Structure):
    """struct epoll_event (sys/epoll.h): packed on x86_64 alone."""

    if os.uname().machine == "x86_64":
        _pack_ = 1
    _fields_ = (("events", ctypes.c_uint32), ("data", ctypes.c_uint64))


def cookie(sock: socket.socket) -> bytes:
    """Return what tells a socket's network namespace from every other since boot."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_NETNS_COOKIE, 8)


def mark(sock: socket.socket) -> bytes:
    """Return what tells a socket from every other since boot, whoever has it open."""
    return sock.getsockopt(socket.SOL_SOCKET, SO_COOKIE, 8)


def duplicate(note: Notification, number: int) -> socket.socket:
    """Return the supervisor's own duplicate of one of the caller's sockets."""
    fd = note.caller.duplicate(number)
    try:
        return _of(fd)
    except BaseException:
        os.close(fd)
        raise


def _of(fd: int) -> socket.socket:
    """Return the socket that a descriptor is, which belongs to it from then on; OSError.

    SAFETY: from ``fileno`` alone Python asks an internet socket for its name, and lets no other
    thread on meanwhile.  The kernel has it wait for whoever has the socket locked: an agent's
    thread can have it for as long as the memory is slow to come that it sends from.
    """
    family, kind, protocol = (
        int.from_bytes(option(fd, socket.SOL_SOCKET, name, 4), sys.byteorder)
        for name in (socket.SO_DOMAIN, socket.SO_TYPE, socket.SO_PROTOCOL)
    )
    if family not in (socket.AF_INET, socket.AF_INET6):
        return socket.socket(fileno=fd)
    sock = socket.socket(family, kind, protocol)
    try:
        os.dup2(fd, sock.fileno(), inheritable=False)
    except BaseException:
        sock.close()
        raise
    os.close(fd)
    return sock


def option(fd: int, level: int, name: int, size: int) -> bytes:
    """getsockopt(2), while which other threads go on, as they do not while Python's waits."""
    value, length = ctypes.create_string_buffer(size), ctypes.c_uint32(size)
    if _libc.getsockopt(fd, level, name, value, ctypes.byref(length)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code))
    return value.raw[: length.value]


def like(old: socket.socket) -> socket.socket:
    """Return a new socket here, with the options of ``old``; it does not block."""
    new = socket.socket(old.family, old.type, old.proto)
    new.setblocking(False)
    levels = dict(_COPIED)
    if old.type != socket.SOCK_STREAM:
        del levels[socket.IPPROTO_TCP]
    if old.family != socket.AF_INET6:
        del levels[socket.IPPROTO_IPV6]
    for level, names in levels.items():
        for name in names:
            # what one of the two does not know, the other need not have
            with contextlib.suppress(OSError):
                value = option(old.fileno(), level, name, 64)
                if value != new.getsockopt(level, name, 64):
                    new.setsockopt(level, name, value)
    for name in _DOUBLED:
        size = old.getsockopt(socket.SOL_SOCKET, name)
        if size != new.getsockopt(socket.SOL_SOCKET, name):
            new.setsockopt(socket.SOL_SOCKET, name, size // 2)
    return new


def put(note: Notification, number: int, old: socket.socket, new: socket.socket) -> None:
    """Put ``new`` wherever the caller's process has ``old``, blocking as that does.

    A duplicate that another process holds stays what it was: its own.
    """
    tgid = note.caller.tgid
    name = f"socket:[{os.fstat(old.fileno()).st_ino}]"
    numbers, watchers = [number], list[int]()
    for entry in os.listdir(f"/proc/{tgid}/fd"):
        try:
            link = os.readlink(f"/proc/{tgid}/fd/{entry}")
        except OSError:
            continue
        if link == name and int(entry) != number:
            numbers.append(int(entry))
        elif link == "anon_inode:[eventpoll]":
            watchers.append(int(entry))
    watched = [found for entry in watchers for found in _watched(tgid, entry, numbers)]
    new.setblocking(os.get_blocking(old.fileno()))
    note.check_alive()
    for one in numbers:
        flags = linux.SECCOMP_ADDFD_FLAG_SETFD
        cloexec = os.O_CLOEXEC if _closes_on_exec(tgid, one) else 0
        fcntl.ioctl(
            note.mediator.listener,
            linux.SECCOMP_IOCTL_NOTIF_ADDFD,
            linux.NOTIF_ADDFD.pack(note.id, flags, new.fileno(), one, cloexec),
        )
    for watcher, one, event in watched:
        _watch(note, watcher, one, new, event)


def _closes_on_exec(tgid: int, number: int) -> bool:
    with open(f"/proc/{tgid}/fdinfo/{number}") as source:
        for line in source:
            if line.startswith("flags:"):
                return bool(int(line.split()[1], 8) & os.O_CLOEXEC)
    return True


def _watched(tgid: int, watcher: int, numbers: list[int]) -> list[tuple[int, int, EpollEvent]]:
    """Return what an epoll instance watches of ``numbers`` (proc_pid_fdinfo(5))."""
    try:
        with open(f"/proc/{tgid}/fdinfo/{watcher}") as source:
            entries = [found for line in source if (found := _TFD.match(line))]
    except OSError:
        return []
    return [
        (watcher, int(entry[1]), EpollEvent(int(entry[2], 16), int(entry[3], 16)))
        for entry in entries
        if int(entry[1]) in numbers
    ]


def _watch(
    note: Notification, watcher: int, number: int, new: socket.socket, event: EpollEvent
) -> None:
    """Have the caller's epoll instance watch ``new`` under the caller's own number.

    An instance knows a file by the number it had where it was added, so this is done in a
    thread with a descriptor table of its own, in which ``new`` has that number.
    """
    epoll = note.caller.duplicate(watcher)
    fd = new.fileno()

    def add() -> None:
        if _libc.unshare(_CLONE_FILES):
            return
        instance = epoll
        if instance == number:
            instance = _libc.dup(instance)
        if fd != number:
            _libc.dup2(fd, number)
        _libc.epoll_ctl(instance, _EPOLL_CTL_ADD, number, ctypes.byref(event))

    try:
        thread = threading.Thread(target=add)
        thread.start()
        thread.join()
    finally:
        os.close(epoll)


def wait_ready(note: Notification, sock: socket.socket, mask: int, option: int) -> None:
    """Wait as the caller would: until ready, its timeout (EAGAIN), a signal (EINTR), its end.

    ``option`` is SO_SNDTIMEO or SO_RCVTIMEO.  For a background thread only.
    """
    seconds, micros = struct.unpack("=qq", sock.getsockopt(socket.SOL_SOCKET, option, 16))
    left = seconds * 1000 + micros // 1000 or None
    poller = select.poll()
    poller.register(sock.fileno(), mask)
    while True:
        step = _WAKE_MS if left is None else min(left, _WAKE_MS)
        if poller.poll(step):
            return
        note.check_alive()
        # the kernel holds the caller's signals back until it is answered
        if signal_waits(note.pid):
            raise error(errno.EINTR)
        if left is not None:
            left -= step
            if left <= 0:
                raise error(errno.EAGAIN)
