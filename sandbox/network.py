"""Addresses: judged once, and used on the supervisor's duplicate of the socket.

An agent's sockets live in its own network namespace, which holds nothing but
its loopback; what stays there is the session's own.  Anything else is outside:
when a rule allows it, the socket is made anew in the host's namespace
(:mod:`~safeclaw.sandbox.outside`).  Unix paths are files: walked in the
agent's root, judged by their canonical path, and used through what was pinned.
"""

from __future__ import annotations

import ctypes
import errno
import ipaddress
import os
import select
import socket
import struct
import threading
from collections.abc import Callable

import msgspec

from safeclaw.policies.model import AddressTarget, Attempt, SocketTarget
from safeclaw.policies.network import Address
from safeclaw.sandbox import binding, deaf, interrupt, linux, names, outside
from safeclaw.sandbox.caller import read_exact
from safeclaw.sandbox.mediator import Handler, Notification
from safeclaw.sandbox.msghdr import SOCKADDR_MAX
from safeclaw.sandbox.names import Names
from safeclaw.sandbox.pinning import parent, pin
from safeclaw.sandbox.resolve import at, error

INET = (socket.AF_INET, socket.AF_INET6)
_SUN_PATH_OFFSET = 2
_SUN_MAX = 110
_SOCKADDR_NL = 12
#: How many bound sockets are remembered; one that is forgotten listens as one that is not bound.
_SERVED_MAX = 4096
_libc = ctypes.CDLL(None, use_errno=True)


class Address4Or6(msgspec.Struct, frozen=True):
    """What a sockaddr_in or sockaddr_in6 really names: IPv4-mapped ones are IPv4."""

    address: Address
    port: int


def inet(raw: bytes, *, v4: bool) -> Address4Or6:
    """Read a sockaddr_in (``v4``) or sockaddr_in6 (ip(7), ipv6(7)); EINVAL when cut short."""
    if len(raw) < (16 if v4 else 24):
        raise error(errno.EINVAL)
    address: Address
    if v4:
        address = ipaddress.IPv4Address(raw[4:8])
    else:
        address = ipaddress.IPv6Address(raw[8:24])
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
    port: int = struct.unpack(">H", raw[2:4])[0]
    return Address4Or6(address, port)


def family_of(raw: bytes) -> int:
    """Return the family a sockaddr says it has; AF_UNSPEC when there is no room for one."""
    return int.from_bytes(raw[:2], "little") if len(raw) >= 2 else socket.AF_UNSPEC


def sun_path(raw: bytes) -> bytes:
    """Return a sockaddr_un's name (unix(7)): a path, an abstract one with its NUL, or none.

    EINVAL when it is longer than one can be.
    """
    if len(raw) > _SUN_MAX:
        raise error(errno.EINVAL)
    path = raw[_SUN_PATH_OFFSET:]
    return path if path[:1] == b"\0" else path.split(b"\0", 1)[0]


def sockaddr_un(path: str) -> bytes:
    """Return the sockaddr_un of a path; ENAMETOOLONG past 107 bytes."""
    encoded = os.fsencode(path)
    if len(encoded) > 107:
        raise error(errno.ENAMETOOLONG)
    return struct.pack("=H", socket.AF_UNIX) + encoded + b"\0"


def require_kernel(raw: bytes) -> None:
    """Raise EPERM unless a sockaddr_nl names the kernel (netlink(7)), as for anybody; EINVAL."""
    if len(raw) < _SOCKADDR_NL or family_of(raw) != socket.AF_NETLINK:
        raise error(errno.EINVAL)
    if any(raw[4:_SOCKADDR_NL]):
        raise error(errno.EPERM)


def protocol_of(sock: socket.socket) -> str:
    """Return tcp or udp: the first filter lets no other internet socket be made."""
    return "udp" if sock.type == socket.SOCK_DGRAM else "tcp"


def call(name: str, sock: socket.socket, address: bytes) -> int:
    """Carry out connect(2) or bind(2)."""
    result: int = getattr(_libc, name)(sock.fileno(), address, len(address))
    if result < 0:
        raise error(ctypes.get_errno())
    return result


class Network:
    """The network of one session: what is its own, and how anything else is reached.

    ``own`` is the cookie of the agent's network namespace, None where it has none of its
    own; ``resolvers`` are the addresses there at which the session's resolver listens.
    """

    def __init__(self, own: bytes | None, resolvers: tuple[str, ...], bound: Names) -> None:
        self._own = own
        self._resolvers = frozenset(resolvers)
        self._names = bound
        # Where sockets of the host's were bound to, by cookie, the oldest first; and its lock.
        self._served: dict[bytes, Address] = {}
        self._serving = threading.Lock()

    def is_own(self, sock: socket.socket) -> bool:
        """Whether a socket provably lives in the agent's own network namespace."""
        return self._own is not None and outside.cookie(sock) == self._own

    def judge(self, note: Notification, action: str, sock: socket.socket, to: Address4Or6) -> bool:
        """Have the use of an address judged; return whether another socket is needed for it."""
        where = to.address
        if where.is_unspecified and action != "network.bind":
            # connecting to the unspecified address reaches this host (ip(7))
            where = ipaddress.ip_address("127.0.0.1" if where.version == 4 else "::1")
        text = str(where).partition("%")[0]
        target = AddressTarget(protocol_of(sock), text, to.port, self._names.of(text))
        own = self.is_own(sock)
        if own and self._stays(note, action, target, where):
            # SAFETY: the socket's namespace holds nothing but the session itself, so
            # whatever the address is on the host, here it leads to nobody else.
            note.judge(Attempt(action, msgspec.structs.replace(target, names=(), own=True)))
            return False
        note.judge(Attempt(action, target))
        return own or (self._own is None and deaf.is_deaf(sock))

    def _stays(
        self, note: Notification, action: str, target: AddressTarget, where: Address
    ) -> bool:
        """Whether an own socket's use of an address is meant for the session itself."""
        if target.port == names.PORT and target.address in self._resolvers:
            return True
        if not (where.is_loopback or where.is_unspecified):
            return False
        # a rule that names the host's loopback, or its every address to serve on, means it
        return not note.mediator.gate.permits(Attempt(action, target))

    def abstract(self, note: Notification, action: str, sock: socket.socket, name: bytes) -> None:
        """Have the use of an abstract Unix name judged; EACCES outside the own namespace."""
        if not self.is_own(sock):
            raise error(errno.EACCES)
        # SAFETY: abstract names are looked up in the socket's own network namespace.
        note.judge(Attempt(action, SocketTarget("@" + os.fsdecode(name[1:]))))

    # ---- connect and bind

    def use(self, note: Notification) -> int | None:
        """Answer connect(2) or bind(2)."""
        length = note.int_arg(2)
        if not 0 <= length <= SOCKADDR_MAX:
            raise error(errno.EINVAL)
        raw = read_exact(note.pid, note.args[1], length)
        sock = outside.duplicate(note, note.int_arg(0))
        try:
            work = self._work(note, sock, raw)
        except BaseException:
            sock.close()
            raise

        def background() -> int:
            with sock:
                return work()

        if _at_once(note.name, sock):
            return background()
        note.mediator.background(note, background)
        return None

    def _work(self, note: Notification, sock: socket.socket, raw: bytes) -> Callable[[], int]:
        family = family_of(raw)
        if sock.family == socket.AF_UNIX:
            if family != socket.AF_UNIX and not (
                family == socket.AF_UNSPEC and note.name == "connect"
            ):
                raise error(errno.EINVAL)
            if family == socket.AF_UNIX:
                return lambda: self._use_unix(note, sock, sun_path(raw))
        elif sock.family in INET and family in INET:
            return lambda: self._use_inet(note, sock, raw)
        elif sock.family == socket.AF_NETLINK:
            if note.name == "connect" and family == socket.AF_NETLINK:
                require_kernel(raw)
        elif sock.family not in INET:
            raise error(errno.EAFNOSUPPORT)
        elif family == socket.AF_UNSPEC and note.name == "bind":
            # old programs leave the family out; for every address, and IPv4, the kernel fills it in
            if sock.family != socket.AF_INET or raw[4:8] != bytes(4):
                raise error(errno.EAFNOSUPPORT)
            return lambda: self._use_inet(note, sock, raw)
        # SAFETY: AF_UNSPEC dissolves an association and reaches nobody; netlink is ROUTE only,
        # and leads to the kernel; any other mismatch is the kernel's to refuse.
        return lambda: call(note.name, sock, raw)

    def _use_inet(self, note: Notification, sock: socket.socket, raw: bytes) -> int:
        to = inet(raw, v4=family_of(raw) != socket.AF_INET6)
        anew = self.judge(note, f"network.{note.name}", sock, to)
        if note.name == "bind":
            if not anew:
                return self._bind(sock, raw, to.address)
            with outside.like(sock) as new:
                result = self._bind(new, raw, to.address)
                outside.put(note, note.int_arg(0), sock, new)
                return result
        return _connect_outside(note, sock, raw) if anew else call(note.name, sock, raw)

    def _bind(self, sock: socket.socket, raw: bytes, where: Address) -> int:
        """Carry out bind(2), and remember to which address."""
        mark = outside.mark(sock)
        with self._serving:
            known = self._served.pop(mark, None)
            try:
                result = call("bind", sock, raw)
            except OSError as problem:
                # one that is bound already stays so; a port that is taken leaves no address at all
                if known is not None and problem.errno == errno.EINVAL:
                    self._served[mark] = known
                raise
            if len(self._served) >= _SERVED_MAX:
                del self._served[next(iter(self._served))]
            self._served[mark] = where
            return result

    def _use_unix(self, note: Notification, sock: socket.socket, name: bytes) -> int:
        action = f"network.{note.name}"
        if not name and note.name == "connect":
            raise error(errno.EINVAL)
        if not name:
            # no name: the kernel makes one up, abstract (unix(7), autobind)
            self.abstract(note, action, sock, b"\0")
            return call("bind", sock, struct.pack("=H", socket.AF_UNIX))
        if name[:1] == b"\0":
            self.abstract(note, action, sock, name)
            return call(note.name, sock, struct.pack("=H", socket.AF_UNIX) + name)
        text = os.fsdecode(name)
        if note.name == "bind":
            directory, last = parent(note, action, linux.AT_FDCWD, text)
            with directory:
                note.judge(Attempt(action, SocketTarget(at(directory, last))))
                umask = note.caller.umask()
                binding.bind(note.mediator.resolver, sock, directory, last, name, umask)
                return 0
        with pin(note, action, linux.AT_FDCWD, text) as pinned:
            note.judge(Attempt(action, SocketTarget(pinned.path)))
            address = sockaddr_un(f"/proc/self/fd/{pinned.fd}")
            # it waits where the listener's queue is full (unix(7))
            return interrupt.waiting(note, lambda: call("connect", sock, address))

    # ---- listen

    def listen(self, note: Notification) -> int:
        """Answer listen(2), which binds a socket that is not: to any free port, everywhere."""
        with outside.duplicate(note, note.int_arg(0)) as sock:
            if sock.family in INET and not self.is_own(sock):
                return self._listen_outside(note, sock)
            if sock.family in INET:
                name = sock.getsockname()
                where = str(_plain(str(name[0])))
                target = AddressTarget(protocol_of(sock), where, int(name[1]), own=True)
                note.judge(Attempt("network.bind", target))
            sock.listen(note.int_arg(1))
        return 0

    def _listen_outside(self, note: Notification, sock: socket.socket) -> int:
        mark = outside.mark(sock)
        known = self._served.get(mark)
        where, port = _everywhere(sock), 0
        # SAFETY: what connect(2) has bound it to is no address that it serves on: the kernel lets
        # go of that with the connection, which may end at any moment (net/ipv4/tcp.c,
        # ``tcp_disconnect``).  What bind(2) has, it keeps (SOCK_BINDADDR_LOCK).
        if known is not None:
            where, port = known, int(sock.getsockname()[1])
        self.judge(note, "network.bind", sock, Address4Or6(where, port))
        with self._serving:
            if self._served.get(mark) != known:
                raise error(errno.EINVAL)  # bound meanwhile, or no more
            sock.listen(note.int_arg(1))
        return 0

    def handlers(self) -> dict[str, Handler]:
        """Return the handlers of the calls that name an address, by name."""
        return {"connect": self.use, "bind": self.use, "listen": self.listen}


def _at_once(name: str, sock: socket.socket) -> bool:
    """Whether the call takes no time: a connect may wait, and a Unix path wants a process."""
    if sock.family == socket.AF_UNIX:
        return False
    return name == "bind" or sock.type == socket.SOCK_DGRAM


def _everywhere(sock: socket.socket) -> Address:
    """Return the address that the kernel binds a socket to which has none."""
    return ipaddress.ip_address("0.0.0.0" if sock.family == socket.AF_INET else "::")


def _plain(text: str) -> Address:
    found = ipaddress.ip_address(text.partition("%")[0])
    mapped = found.ipv4_mapped if isinstance(found, ipaddress.IPv6Address) else None
    return found if mapped is None else mapped


def _connect_outside(note: Notification, sock: socket.socket, raw: bytes) -> int:
    """Connect a new socket of the host's, and put it in the place of the caller's."""
    if sock.type == socket.SOCK_STREAM and (
        sock.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) or _connected(sock)
    ):
        raise error(errno.EISCONN)
    blocks = os.get_blocking(sock.fileno())
    number = note.int_arg(0)
    with outside.like(sock) as new:
        try:
            result = call("connect", new, raw)
        except OSError as problem:
            if problem.errno != errno.EINPROGRESS:
                raise
            if blocks:
                return _wait_connected(note, sock, new)
            outside.put(note, number, sock, new)
            raise
        outside.put(note, number, sock, new)
        return result


def _wait_connected(note: Notification, sock: socket.socket, new: socket.socket) -> int:
    number = note.int_arg(0)
    try:
        outside.wait_ready(note, new, select.POLLOUT, socket.SO_SNDTIMEO)
    except OSError as problem:
        if problem.errno in (errno.EINTR, errno.EAGAIN):
            # connect(2): what was begun goes on, and a timeout says so
            outside.put(note, number, sock, new)
            if problem.errno == errno.EAGAIN:
                raise error(errno.EINPROGRESS) from None
        raise
    code = new.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
    if code:
        raise error(code)
    outside.put(note, number, sock, new)
    return 0


def _connected(sock: socket.socket) -> bool:
    try:
        sock.getpeername()
    except OSError:
        return False
    return True
