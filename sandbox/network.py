"""Network calls, carried out on the supervisor's duplicate of the socket.

The address is copied once.  Unix paths are files: walked in the agent's root,
judged by their canonical path, and used through the pinned parent.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import socket
import struct

from safeclaw.policies.model import AddressTarget, Attempt, SocketTarget
from safeclaw.sandbox import linux
from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.files import parent, pin
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.resolve import error, join

_SOCKADDR_MAX = 128
_SUN_PATH_OFFSET = 2
_MESSAGE_MAX = 4 * 1024 * 1024
_IOV_MAX = 1024
_libc = ctypes.CDLL(None, use_errno=True)


def _duplicate(note: Notification, number: int) -> socket.socket:
    """Return the supervisor's own duplicate of the caller's socket."""
    pidfd = os.pidfd_open(note.caller.tgid)
    try:
        fd = linux.pidfd_getfd(pidfd, number)
    finally:
        os.close(pidfd)
    try:
        return socket.socket(fileno=fd)
    except OSError:
        os.close(fd)
        raise error(errno.ENOTSOCK) from None


def _call(name: str, fd: int, address: bytes) -> int:
    result: int = getattr(_libc, name)(fd, address, len(address))
    if result < 0:
        raise error(ctypes.get_errno())
    return result


def _protocol(sock: socket.socket) -> str:
    return "udp" if sock.type == socket.SOCK_DGRAM else "tcp"


def _inet(sock: socket.socket, raw: bytes) -> AddressTarget:
    """Return the address a sockaddr_in or sockaddr_in6 really names (ip(7), ipv6(7))."""
    family = int.from_bytes(raw[:2], "little")
    if family == socket.AF_INET:
        if len(raw) < 16:
            raise error(errno.EINVAL)
        address: ipaddress.IPv4Address | ipaddress.IPv6Address = ipaddress.IPv4Address(raw[4:8])
    else:
        if len(raw) < 24:
            raise error(errno.EINVAL)
        address = ipaddress.IPv6Address(raw[8:24])
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    port: int = struct.unpack(">H", raw[2:4])[0]
    # connecting to the unspecified address reaches this host (ip(7))
    if address.is_unspecified:
        address = ipaddress.ip_address("127.0.0.1" if address.version == 4 else "::1")
    return AddressTarget(_protocol(sock), str(address), port)


def _sun_path(raw: bytes) -> bytes:
    path = raw[_SUN_PATH_OFFSET:]
    if path[:1] == b"\0" or not path:
        return b""  # abstract or unnamed: held by the Landlock scope
    return path.split(b"\0", 1)[0]


def _use(note: Notification, sock: socket.socket, call: str, raw: bytes) -> int:
    """Judge one address for connect or bind and carry the call out."""
    action = "network.bind" if call == "bind" else "network.connect"
    family = int.from_bytes(raw[:2], "little") if len(raw) >= 2 else 0
    if family == socket.AF_UNSPEC and call == "connect":
        return _call(call, sock.fileno(), raw)  # dissolves the association, reaches nothing
    if family == socket.AF_UNIX:
        return _use_unix(note, sock, call, action, _sun_path(raw))
    if family in (socket.AF_INET, socket.AF_INET6):
        note.judge(Attempt(action, _inet(sock, raw)))
        return _blocking(note, sock, call, raw)
    if family == socket.AF_NETLINK:
        return _call(call, sock.fileno(), raw)  # ROUTE only, in its own namespace
    raise error(errno.EAFNOSUPPORT)


def _blocking(note: Notification, sock: socket.socket, call: str, raw: bytes) -> int:
    return _call(call, sock.fileno(), raw)


def _use_unix(note: Notification, sock: socket.socket, call: str, action: str, path: bytes) -> int:
    if not path:
        # SAFETY: an abstract name would be looked up in the supervisor's Landlock domain,
        # which is none, but the network namespace of the socket is the agent's own.
        raise error(errno.EACCES if call == "connect" else errno.EADDRNOTAVAIL)
    text = os.fsdecode(path)
    if call == "bind":
        directory, name = parent(note, action, linux.AT_FDCWD, text)
        with directory:
            note.judge(Attempt(action, SocketTarget(join(directory.path, name))))
            handle = f"/proc/self/fd/{directory.fd}/{name}"
            os_umask = os.umask(note.caller.umask())
            try:
                return _call(call, sock.fileno(), _sockaddr_un(handle))
            finally:
                os.umask(os_umask)
    with pin(note, action, linux.AT_FDCWD, text) as pinned:
        note.judge(Attempt(action, SocketTarget(pinned.path)))
        return _call(call, sock.fileno(), _sockaddr_un(f"/proc/self/fd/{pinned.fd}"))


def _sockaddr_un(path: str) -> bytes:
    encoded = os.fsencode(path)
    if len(encoded) > 107:
        raise error(errno.ENAMETOOLONG)
    return struct.pack("=H", socket.AF_UNIX) + encoded + b"\0"


def _address_call(note: Notification) -> int | None:
    length = note.int_arg(2)
    if not 0 <= length <= _SOCKADDR_MAX:
        raise error(errno.EINVAL)
    raw = read_exact(note.pid, note.args[1], length)
    sock = _duplicate(note, note.int_arg(0))

    def work() -> int:
        with sock:
            return _use(note, sock, note.name, raw)

    if note.name == "connect" and sock.getblocking() is not False and not _nonblocking(sock):
        note.mediator.background(note, work)
        return None
    return work()


def _nonblocking(sock: socket.socket) -> bool:
    return not os.get_blocking(sock.fileno())


def _listen(note: Notification) -> int:
    with _duplicate(note, note.int_arg(0)) as sock:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            address = sock.getsockname()
            # listen(2) on an unbound socket binds it to any free port of every address
            note.judge(
                Attempt("network.bind", AddressTarget(_protocol(sock), address[0], address[1]))
            )
        sock.listen(note.int_arg(1))
    return 0


def _socket(note: Notification) -> int | None:
    """Make an internet socket in the host's namespace; its uses are judged one by one."""
    kind = note.int_arg(1)
    with socket.socket(note.int_arg(0), kind & 0xF, note.int_arg(2)) as sock:
        sock.setblocking(not kind & socket.SOCK_NONBLOCK)
        note.send_descriptor(sock.fileno(), cloexec=bool(kind & socket.SOCK_CLOEXEC))
    return None


def _send_to(note: Notification) -> int | None:
    size = note.args[2]
    if size > _MESSAGE_MAX:
        raise error(errno.EMSGSIZE)
    raw = read_exact(note.pid, note.args[4], min(note.int_arg(5) & 0xFF, _SOCKADDR_MAX))
    data = read_exact(note.pid, note.args[1], size)
    sock = _duplicate(note, note.int_arg(0))
    return _send_later(
        note, sock, lambda: _send_message(note, sock, raw, [data], [], note.int_arg(3))
    )


def _send_later(note: Notification, sock: socket.socket, work: object) -> int | None:
    def run() -> int:
        with sock:
            return work()  # type: ignore[operator,no-any-return]

    if _nonblocking(sock):
        return run()
    note.mediator.background(note, run)
    return None


def _send_message(
    note: Notification,
    sock: socket.socket,
    raw: bytes,
    parts: list[bytes],
    control: list[tuple[int, int, bytes]],
    flags: int,
) -> int:
    if not raw:
        return sock.sendmsg(parts, control, flags | socket.MSG_NOSIGNAL)
    family = int.from_bytes(raw[:2], "little")
    if family == socket.AF_UNIX:
        path = _sun_path(raw)
        if not path:
            raise error(errno.EACCES)
        with pin(note, "network.send", linux.AT_FDCWD, os.fsdecode(path)) as pinned:
            note.judge(Attempt("network.send", SocketTarget(pinned.path)))
            where: object = f"/proc/self/fd/{pinned.fd}"
            return sock.sendmsg(parts, control, flags | socket.MSG_NOSIGNAL, where)  # type: ignore[arg-type]
    if family in (socket.AF_INET, socket.AF_INET6):
        target = _inet(sock, raw)
        note.judge(Attempt("network.send", target))
        host = str(ipaddress.ip_address(target.address))
        if sock.family == socket.AF_INET6 and ":" not in host:
            host = f"::ffff:{host}"
        return sock.sendmsg(parts, control, flags | socket.MSG_NOSIGNAL, (host, target.port))
    if family == socket.AF_NETLINK:
        return sock.sendmsg(parts, control, flags | socket.MSG_NOSIGNAL, (0, 0))
    raise error(errno.EAFNOSUPPORT)


def _read_header(note: Notification, address: int) -> tuple[bytes, list[bytes], bytes]:
    """Copy a struct msghdr with all it points to: name, data, control (recvmsg(2))."""
    header = read_exact(note.pid, address, 56)
    name, namelen, iov, iovlen, control, controllen = struct.unpack("=QI4xQQQQ", header[:48])
    if iovlen > _IOV_MAX or namelen > _SOCKADDR_MAX or controllen > 65536:
        raise error(errno.EMSGSIZE)
    vectors = read_exact(note.pid, iov, iovlen * 16)
    parts: list[bytes] = []
    for base, length in struct.iter_unpack("=QQ", vectors):
        if length > _MESSAGE_MAX:
            raise error(errno.EMSGSIZE)
        parts.append(read_exact(note.pid, base, length))
    raw = read_exact(note.pid, name, namelen) if name else b""
    return raw, parts, read_exact(note.pid, control, controllen) if control else b""


def _control(note: Notification, data: bytes) -> tuple[list[tuple[int, int, bytes]], list[int]]:
    """Translate SCM_RIGHTS to the supervisor's own duplicates (cmsg(3), unix(7))."""
    out: list[tuple[int, int, bytes]] = []
    owned: list[int] = []
    offset = 0
    while offset + 16 <= len(data):
        length, level, kind = struct.unpack_from("=Qii", data, offset)
        if length < 16 or offset + length > len(data):
            raise error(errno.EINVAL)
        body = data[offset + 16 : offset + length]
        if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
            numbers = struct.unpack(f"={len(body) // 4}i", body[: len(body) // 4 * 4])
            pidfd = os.pidfd_open(note.caller.tgid)
            try:
                mine = [linux.pidfd_getfd(pidfd, number) for number in numbers]
            finally:
                os.close(pidfd)
            owned += mine
            out.append((level, kind, struct.pack(f"={len(mine)}i", *mine)))
        elif (level, kind) == (socket.SOL_SOCKET, socket.SCM_CREDENTIALS):
            pass  # the kernel would say the supervisor; leave it out
        else:
            raise error(errno.EPERM)
        offset += (length + 7) & ~7
    return out, owned


def _send_msg(note: Notification) -> int | None:
    raw, parts, data = _read_header(note, note.args[1])
    sock = _duplicate(note, note.int_arg(0))

    def work() -> int:
        control, owned = _control(note, data)
        try:
            return _send_message(note, sock, raw, parts, control, note.int_arg(2))
        finally:
            for fd in owned:
                os.close(fd)

    return _send_later(note, sock, work)


def _send_mmsg(note: Notification) -> int | None:
    count = min(note.args[2], _IOV_MAX)
    headers = [_read_header(note, note.args[1] + index * 64) for index in range(count)]
    sock = _duplicate(note, note.int_arg(0))

    def work() -> int:
        done = 0
        for index, (raw, parts, data) in enumerate(headers):
            control, owned = _control(note, data)
            try:
                sent = _send_message(note, sock, raw, parts, control, note.int_arg(3))
            except OSError:
                if done:
                    return done
                raise
            finally:
                for fd in owned:
                    os.close(fd)
            linux.write_memory(note.pid, note.args[1] + index * 64 + 56, sent.to_bytes(4, "little"))
            done += 1
        return done

    return _send_later(note, sock, work)


def handlers() -> dict[str, Handler]:
    """Return the handler of every network call, by name."""
    return {
        "connect": _address_call,
        "bind": _address_call,
        "listen": _listen,
        "socket": _socket,
        "sendto": _send_to,
        "sendmsg": _send_msg,
        "sendmmsg": _send_mmsg,
    }
