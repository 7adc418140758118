"""A small internet in a network namespace: nameserver, web servers, and what must stay unreached.

Run as a program inside the namespace.  It writes ``ready``; for each line on stdin it answers
with one line of JSON: everything that has reached it so far, by place.
"""

from __future__ import annotations

import contextlib
import functools
import http.server
import json
import select
import socket
import socketserver
import struct
import sys
import threading

GOOD, EVIL, META, LAN, GOOD6 = (
    "203.0.113.10", "203.0.113.66", "169.254.169.254", "10.1.2.3", "2001:db8::10",
)  # fmt: skip
NAMESERVER = "203.0.113.53"
ADDRESSES = (GOOD, EVIL, META, LAN, GOOD6, NAMESERVER)
HOSTS = "127.0.0.1 localhost\n::1 localhost\n10.1.2.3 intranet.test\n"
#: name: (CNAME or "", addresses)
ZONE: dict[str, tuple[str, tuple[str, ...]]] = {
    "api.good.test": ("edge.cdn.test", (GOOD,)),
    "six.good.test": ("", (GOOD6,)),
    "good.test": ("", (GOOD,)),
    "loop.good.test": ("", ("127.0.0.1",)),
    "meta.good.test": ("", (META,)),
    "lan.good.test": ("", (LAN,)),
    "evil.test": ("", (EVIL,)),
    "big.good.test": ("", tuple(f"203.0.113.{n}" for n in range(10, 110))),
}
A, CNAME, AAAA = 1, 5, 28


def _encode(name: str) -> bytes:
    return b"".join(bytes([len(x)]) + x.encode() for x in name.split(".")) + b"\0"


def answer(packet: bytes, *, stream: bool) -> tuple[str, bytes]:
    """Answer a query as a server would that follows every pointer; the name asked comes with it."""
    labels: list[str] = []
    at = 12
    end = 0
    while packet[at]:
        if packet[at] & 0xC0:
            end, at = end or at + 1, (packet[at] & 0x3F) << 8 | packet[at + 1]
            continue
        labels.append(packet[at + 1 : at + 1 + packet[at]].decode())
        at += 1 + packet[at]
    raw = packet[12 : (end or at) + 5]
    (kind,) = struct.unpack(">H", raw[-4:-2])
    name = ".".join(labels)
    alias, addresses = ZONE.get(name.lower(), ("", ()))
    records: list[bytes] = []
    owner = b"\xc0\x0c"
    if alias:
        target = _encode(alias)
        records.append(owner + struct.pack(">HHIH", CNAME, 1, 300, len(target)) + target)
        owner = target
    for text in addresses:
        family, number = (socket.AF_INET6, AAAA) if ":" in text else (socket.AF_INET, A)
        if kind == number:
            data = socket.inet_pton(family, text)
            records.append(owner + struct.pack(">HHIH", number, 1, 300, len(data)) + data)
    body = b"".join(records)
    code = 0 if name.lower() in ZONE else 3
    flags, count = 0x8580 | code, len(records)
    if not stream and len(body) > 450:
        flags, count, body = flags | 0x0200, 0, b""
    return name, packet[:2] + struct.pack(">5H", flags, 1, count, 0, 0) + raw + body


class World:
    """The sockets of the world, and what has come in on each."""

    def __init__(self, web: str) -> None:
        self.seen: dict[str, list[str]] = {}
        self.sockets: dict[socket.socket, str] = {}
        for host, port in ((EVIL, 80), (META, 80), (LAN, 80), ("127.0.0.1", 7777), (GOOD, 8443)):
            self._listen(socket.AF_INET, (host, port), f"tcp {host}:{port}")
        self._listen(socket.AF_INET6, (GOOD6, 80), f"tcp {GOOD6}:80")
        self._listen(socket.AF_INET6, ("::1", 7777), "tcp ::1:7777")
        for host in (GOOD, EVIL, "127.0.0.1"):
            self._bind((host, 9999), f"udp {host}:9999")
        self._bind((NAMESERVER, 53), "dns")
        self._listen(socket.AF_INET, (NAMESERVER, 53), "dns tcp")
        self._listen(socket.AF_UNIX, "\0host-abstract", "abstract")
        seen = self.seen

        class Handler(http.server.SimpleHTTPRequestHandler):
            def log_message(self, format: str, *args: object) -> None:  # noqa: A002
                seen.setdefault("web", []).append(self.path)

        class Server(http.server.ThreadingHTTPServer):
            def server_bind(self) -> None:
                # HTTPServer's own would look its name up
                socketserver.TCPServer.server_bind(self)
                self.server_name, self.server_port = GOOD, 80

        server = Server((GOOD, 80), functools.partial(Handler, directory=web))
        threading.Thread(target=server.serve_forever, daemon=True).start()

    def _listen(self, family: int, where: object, name: str) -> None:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(where)  # type: ignore[arg-type]
        sock.listen(128)
        self.sockets[sock] = name

    def _bind(self, where: tuple[str, int], name: str) -> None:
        sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        sock.bind(where)
        self.sockets[sock] = name

    def take(self, sock: socket.socket) -> None:
        """Take one connection or packet: note it, and answer."""
        name = self.sockets[sock]
        if sock.type == socket.SOCK_STREAM:
            connection, _ = sock.accept()
            with connection:
                if name == "dns tcp":
                    size = int.from_bytes(connection.recv(2), "big")
                    asked, reply = answer(connection.recv(size), stream=True)
                    connection.sendall(len(reply).to_bytes(2, "big") + reply)
                    self.seen.setdefault(name, []).append(asked)
                    return
                self.seen.setdefault(name, []).append("connection")
                with contextlib.suppress(OSError):  # who was only looking has gone
                    connection.sendall(f"hello from {name}\n".encode())
            return
        packet, peer = sock.recvfrom(65535)
        text = packet.decode("utf-8", "replace")
        if name == "dns":
            text, packet = answer(packet, stream=False)
        self.seen.setdefault(name, []).append(text)
        sock.sendto(packet, peer)

    def serve(self) -> None:
        """Serve until stdin ends."""
        poller = select.poll()
        by_number = {sock.fileno(): sock for sock in self.sockets}
        for number in (*by_number, 0):
            poller.register(number, select.POLLIN)
        while True:
            ready = [number for number, _ in poller.poll()]
            for number in ready:
                if number in by_number:
                    self.take(by_number[number])
            # whoever asks gets to know everything that had arrived by then
            if ready == [0]:
                if not sys.stdin.readline():
                    return
                print(json.dumps(self.seen), flush=True)


if __name__ == "__main__":
    world = World(sys.argv[1])
    print("ready", flush=True)
    world.serve()
