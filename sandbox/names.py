"""The session's own resolver: which names the agent may ask for, and what they mean.

It listens in the agent's network namespace, at the very addresses that the
agent's /etc/resolv.conf names, so that any program finds it.  A name that no
rule could allow does not exist; any other is asked for outside, at the same
nameserver.  What the world answers binds the name to the address for its
lifetime (bounded), so that a rule's ``host: api.example.com`` means the hosts
that were found under that name, and nothing else.

The resolver lives as long as the session and owns its sockets.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable

from safeclaw.errors import WallError
from safeclaw.policies import network
from safeclaw.policies.model import Attempt, Decision, NameTarget, OtherTarget, Verdict
from safeclaw.sandbox import dns
from safeclaw.sandbox.gate import Gate

PORT = 53
#: Where libc asks when nobody is named (resolv.conf(5)).
_FALLBACK = ("127.0.0.1",)
_SERVERS_MAX = 8
#: For how long, in seconds, an answer binds at least and at most: programs use an address a
#: little after its lifetime, and none is to keep one for ever.
_LIFETIME_MIN, _LIFETIME_MAX = 60, 3600
_NAMES_MAX, _BOUND_MAX, _PER_ADDRESS_MAX = 4096, 8192, 16
_ANSWER_SECONDS = 5.0
_AT_ONCE_MAX = 32
_NO_DESCRIPTOR = (errno.EMFILE, errno.ENFILE)
#: How often a descriptor is looked for while there is none, in seconds.
_PAUSE = 0.1
_PACKET_MAX = 65535
_RTM_NEWADDR, _NLMSG_ERROR = 20, 2
_NLM_F_REQUEST_ACK_CREATE = 0x1 | 0x4 | 0x400
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_NODAD = 0x02
_FOREVER = float("inf")


def nameservers(text: str) -> tuple[str, ...]:
    """Return the nameservers that a resolv.conf(5) names, as they are written there.

    One with a scope (``fe80::1%eth0``) names a link that the agent has not: it is left out.
    """
    found: list[str] = []
    for line in text.splitlines():
        words = line.split()
        if len(words) < 2 or words[0] != "nameserver":
            continue
        try:
            where = ipaddress.ip_address(words[1])
        except ValueError:
            continue
        scoped = isinstance(where, ipaddress.IPv6Address) and where.scope_id is not None
        if not scoped and not where.is_unspecified and str(where) not in found:
            found.append(str(where))
    return tuple(found[:_SERVERS_MAX]) or _FALLBACK


def system_nameservers() -> tuple[str, ...]:
    """Return the nameservers of this host's /etc/resolv.conf."""
    try:
        with open("/etc/resolv.conf", encoding="utf-8", errors="replace") as source:
            return nameservers(source.read())
    except OSError:
        return _FALLBACK


def system_names() -> Names:
    """Return the bindings that a session begins with: those of this host's /etc/hosts."""
    found = Names()
    with contextlib.suppress(OSError), open("/etc/hosts", errors="replace") as source:
        found.bind_hosts(source.read())
    return found


def listen(servers: tuple[str, ...]) -> list[socket.socket]:
    """Open the resolver's sockets, in the caller's network namespace: UDP and TCP for each.

    To be called with CAP_NET_ADMIN and CAP_NET_BIND_SERVICE there, with its loopback up.
    An IPv6 nameserver is left out where there is no IPv6.  Raises WallError.
    """
    out: list[socket.socket] = []
    for server in servers:
        where = ipaddress.ip_address(server)
        family = socket.AF_INET if where.version == 4 else socket.AF_INET6
        try:
            if not where.is_loopback:
                _add_address(where)
            for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
                sock = socket.socket(family, kind)
                out.append(sock)
                sock.bind((server, PORT))
                if kind == socket.SOCK_STREAM:
                    sock.listen(16)
        except OSError as problem:
            if family == socket.AF_INET6 and problem.errno in (
                errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL, errno.EACCES, errno.EOPNOTSUPP,
            ):  # fmt: skip
                continue
            raise WallError(
                f"the session's resolver cannot listen at {server}: {problem.strerror}",
                hint="see the nameserver lines of /etc/resolv.conf",
            ) from problem
    return out if out or servers == _FALLBACK else listen(_FALLBACK)


def _add_address(where: network.Address) -> None:
    """Give the loopback interface one more address (rtnetlink(7) RTM_NEWADDR)."""
    with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, 0) as sock:
        family = socket.AF_INET if where.version == 4 else socket.AF_INET6
        index = socket.if_nametoindex("lo")
        body = struct.pack("=BBBBi", family, where.max_prefixlen, _IFA_F_NODAD, 0, index)
        for kind in (_IFA_LOCAL, _IFA_ADDRESS):
            body += struct.pack("=HH", 4 + len(where.packed), kind) + where.packed
        size = 16 + len(body)
        header = struct.pack("=IHHII", size, _RTM_NEWADDR, _NLM_F_REQUEST_ACK_CREATE, 1, 0)
        sock.sendto(header + body, (0, 0))
        kind, code = struct.unpack_from("=4xH10xi", sock.recv(4096))
        if kind == _NLMSG_ERROR and code:
            raise OSError(-code, os.strerror(-code))


class Names:
    """Which names each address was given for, and until when.  Safe for threads."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._bound: dict[str, dict[str, float]] = {}

    def bind(self, name: str, answer: dns.Answer) -> None:
        """Bind a name to the public ones of the addresses in an answer.

        SAFETY: an answer that leads to this host's loopback, a link or a private network binds
        nothing, or whoever owns a name could reach them with it (DNS rebinding).
        """
        until = self._clock() + min(max(answer.ttl, _LIFETIME_MIN), _LIFETIME_MAX)
        for text in answer.addresses:
            address = network.address(text)
            if address is not None and not network.is_private(address):
                self._put(str(address), name, until)

    def bind_hosts(self, text: str) -> None:
        """Bind what a hosts(5) file says, for good: it is the administrator's word."""
        for line in text.splitlines():
            words = line.partition("#")[0].split()
            address = network.address(words[0]) if words else None
            if address is not None and not network.is_special(address):
                for name in words[1:]:
                    self._put(str(address), name.lower().removesuffix("."), _FOREVER)

    def _put(self, address: str, name: str, until: float) -> None:
        with self._lock:
            if address not in self._bound and len(self._bound) >= _BOUND_MAX:
                self._sweep()
            names = self._bound.setdefault(address, {})
            if name not in names and len(names) >= _PER_ADDRESS_MAX:
                names.pop(min(names, key=lambda one: names[one]))
            names[name] = max(until, names.get(name, 0.0))

    def _sweep(self) -> None:
        """Drop what has lapsed, and then whatever lapses first."""
        now = self._clock()
        last = {where: max(names.values()) for where, names in self._bound.items()}
        kept = sorted((where for where in last if last[where] > now), key=lambda one: last[one])
        self._bound = {where: self._bound[where] for where in kept[-_BOUND_MAX // 2 :]}

    def of(self, address: str) -> tuple[str, ...]:
        """Return the names that an address (a plain literal) is bound to now, sorted."""
        names = self._bound.get(address)
        if names is None:
            return ()
        now = self._clock()
        with self._lock:
            return tuple(sorted(name for name, until in names.items() if until > now))


class _Judged:
    """Whether a name may be asked for, what the policy said then, and until when that holds.

    The lock guards all of it.
    """

    __slots__ = ("allowed", "lock", "said", "until")

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.allowed = False
        self.said: Verdict | None = None
        self.until = 0.0


class NameServer:
    """Answers the agent's queries on the sockets that :func:`listen` made."""

    def __init__(self, sockets: list[socket.socket], names: Names, gate: Gate, pid: int) -> None:
        self._sockets = sockets
        self._names = names
        self._gate = gate
        self._pid = pid
        self._judged: dict[str, _Judged] = {}
        self._judging = threading.Lock()
        self._free = threading.BoundedSemaphore(_AT_ONCE_MAX)
        #: Given up to take a connection for which no other descriptor is left.
        self._spare = -1

    def start(self) -> None:
        """Serve, in threads of its own, until the process ends."""
        self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
        threading.Thread(target=self._serve, name="resolver", daemon=True).start()

    def _serve(self) -> None:
        poller = select.poll()
        by_number = {sock.fileno(): sock for sock in self._sockets}
        for number, sock in by_number.items():
            sock.setblocking(False)
            poller.register(number, select.POLLIN)
        while True:
            for number, _ in poller.poll():
                sock = by_number[number]
                # a query beyond the limit waits in the socket, as at any busy server
                self._free.acquire()
                try:
                    work = self._take(sock)
                    threading.Thread(target=self._work, args=(work,), daemon=True).start()
                except (OSError, RuntimeError) as problem:  # no thread: the asker asks again
                    self._free.release()
                    if isinstance(problem, OSError) and problem.errno in _NO_DESCRIPTOR:
                        self._turn_away(sock)

    def _turn_away(self, listener: socket.socket) -> None:
        """Close a connection that there is no descriptor for; left waiting, it would be polled."""
        os.close(self._spare)
        with contextlib.suppress(OSError):
            listener.accept()[0].close()
        while True:
            try:
                self._spare = os.open("/dev/null", os.O_RDONLY | os.O_CLOEXEC)
            except OSError:  # another thread was faster: until one is given back
                time.sleep(_PAUSE)
            else:
                return

    def _work(self, work: Callable[[], None]) -> None:
        try:
            work()
        except OSError:
            pass  # the asker has gone, or asks again
        except Exception as problem:  # no answer is no address; but it is not to go unseen
            self._gate.violation(
                Attempt("sandbox.defect", OtherTarget("resolver")),
                pid=self._pid,
                exe="",
                reason=f"refused, for a defect in safeclaw: {type(problem).__name__}: {problem}",
            )
        finally:
            self._free.release()

    def _take(self, sock: socket.socket) -> Callable[[], None]:
        if sock.type == socket.SOCK_STREAM:
            connection, _ = sock.accept()
            return lambda: self._stream(connection)
        packet, asker = sock.recvfrom(_PACKET_MAX)
        server = str(sock.getsockname()[0])

        def datagram() -> None:
            answered = self._answer(packet, lambda query: _ask_datagram(server, query))
            if answered is not None:
                sock.sendto(answered, asker)

        return datagram

    def _stream(self, connection: socket.socket) -> None:
        with connection:
            connection.settimeout(_ANSWER_SECONDS)
            server = str(connection.getsockname()[0])
            while (packet := _receive(connection)) is not None:
                answered = self._answer(packet, lambda query: _ask_stream(server, query))
                if answered is None:
                    return
                connection.sendall(len(answered).to_bytes(2, "big") + answered)

    def _answer(self, packet: bytes, ask: Callable[[bytes], bytes]) -> bytes | None:
        asked = dns.question(packet)
        if asked is None:
            return None
        if not self._allowed(asked.name):
            return dns.refusal(asked, dns.NXDOMAIN)
        # SAFETY: the address hints of these would be used without having been bound, and a zone
        # transfer tells names that no rule has.
        if asked.kind in (dns.SVCB, dns.HTTPS) or asked.kind in dns.QTYPES:
            return dns.refusal(asked, dns.NOERROR)
        ident = int.from_bytes(os.urandom(2), "big")
        try:
            answered = dns.reply(asked, ask(dns.query(asked, ident)), ident)
        except OSError:
            answered = None
        if answered is None:
            return dns.refusal(asked, dns.SERVFAIL)
        # INVARIANT: bound before the agent learns of it, so that its first connect finds it.
        self._names.bind(asked.name, dns.answer(asked, answered))
        return answered

    def _allowed(self, name: str) -> bool:
        """Whether a name may be asked for: judged and recorded once for its least lifetime.

        SAFETY: what was decided holds only for as long as the policy says the same, and while
        there is a broker.
        """
        attempt = Attempt("network.resolve", NameTarget(name))
        with self._judging:
            if name not in self._judged and len(self._judged) >= _NAMES_MAX:
                self._judged.clear()
            known = self._judged.setdefault(name, _Judged())
        # a person who is asked about one name keeps nobody from the others
        with known.lock:
            said = self._gate.peek(attempt)
            if known.until <= time.monotonic() or known.said != said:
                verdict = self._gate.judge(attempt, pid=self._pid, exe="", enforced_by="resolver")
                known.allowed = verdict.decision is Decision.ALLOW
                known.said = said
                known.until = time.monotonic() + _LIFETIME_MIN
                return known.allowed
        return known.allowed and self._gate.stands()


def _ask_datagram(server: str, query: bytes) -> bytes:
    """Ask a nameserver outside, from a port of its own; OSError when it does not answer."""
    family = socket.AF_INET6 if ":" in server else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(_ANSWER_SECONDS)
        sock.connect((server, PORT))
        sock.send(query)
        while True:
            answered = sock.recv(_PACKET_MAX)
            if answered[:2] == query[:2]:
                return answered


def _ask_stream(server: str, query: bytes) -> bytes:
    with socket.create_connection((server, PORT), timeout=_ANSWER_SECONDS) as sock:
        sock.sendall(len(query).to_bytes(2, "big") + query)
        answered = _receive(sock)
    if answered is None:
        raise OSError(errno.ECONNRESET, os.strerror(errno.ECONNRESET))
    return answered


def _receive(sock: socket.socket) -> bytes | None:
    """Return one length-prefixed message (RFC 1035, 4.2.2); None at the end."""
    size = _exactly(sock, 2)
    return None if size is None else _exactly(sock, int.from_bytes(size, "big"))


def _exactly(sock: socket.socket, size: int) -> bytes | None:
    data = b""
    while len(data) < size:
        chunk = sock.recv(size - len(data))
        if not chunk:
            return None
        data += chunk
    return data
