"""Serves the metrics: HTTP on a Unix socket, and on a port of 127.0.0.1 where one is set.

A thread that lives as long as the broker.  It asks the broker's loop for a snapshot, and
does everything else itself: a slow, idle or hostile reader holds up other readers of
metrics for a moment, and no decision.  A loop that does not turn is told as 503.
"""

from __future__ import annotations

import contextlib
import errno
import queue
import select
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from safeclaw.daemon import openmetrics
from safeclaw.daemon.health import Snapshot
from safeclaw.daemon.peer import Peer, peer_of
from safeclaw.errors import BrokerError
from safeclaw.policies.model import printable

SOCKET_NAME = "metrics.sock"
#: How long a reader may take to ask, and to take the answer, in seconds.
_PATIENCE = 2.0
#: How long the broker's loop may take to turn.
_LOOP_PATIENCE = 2.0
#: A snapshot serves for this long: many readers cost the loop no more than one.
_FRESH = 0.5
_REQUEST_MAX = 8192
#: While no descriptor is left for a reader, one is looked for this often, in seconds.
_AGAIN = 0.1


def listen(path: Path) -> socket.socket:
    """Return a listener on a Unix socket that everybody may connect to; OSError.

    Who may read is decided by who connects, as with the broker's own socket.
    """
    with contextlib.suppress(FileNotFoundError):
        if path.is_socket():
            path.unlink()
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        listener.bind(str(path))
        path.chmod(0o666)
        listener.listen(16)
    except BaseException:
        listener.close()
        raise
    return listener


def listen_loopback(port: int) -> socket.socket:
    """Return a listener on a port of 127.0.0.1.  BrokerError."""
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", port))
        listener.listen(16)
    except OSError as problem:
        listener.close()
        raise BrokerError(
            f"metrics_port: 127.0.0.1:{port}: {problem.strerror}",
            hint="set another metrics_port in safeclawd.yaml, or leave it out",
        ) from problem
    return listener


class Metrics:
    """See the module.  ``allowed`` says who may read on a Unix socket, from any thread."""

    def __init__(
        self,
        listeners: Sequence[socket.socket],
        snapshot: Callable[[float], Snapshot | None],
        allowed: Callable[[Peer], bool],
        wake: Callable[[], None],
    ) -> None:
        self._listeners = listeners
        self._snapshot = snapshot
        self._allowed = allowed
        self._wake = wake
        self._kept: tuple[float, bytes] | None = None
        #: Who was turned away, for the broker to record.
        self.refused: queue.SimpleQueue[Peer] = queue.SimpleQueue()
        threading.Thread(target=self._run, name="metrics", daemon=True).start()

    def _run(self) -> None:
        poller = select.poll()
        for listener in self._listeners:
            listener.setblocking(False)
            poller.register(listener, select.POLLIN)
        while True:
            ready = {number for number, _ in poller.poll()}
            for listener in self._listeners:
                if listener.fileno() in ready:
                    self._take(listener)

    def _take(self, listener: socket.socket) -> None:
        try:
            self._serve(listener.accept()[0])
        except OSError as problem:
            if problem.errno in (errno.EMFILE, errno.ENFILE):
                time.sleep(_AGAIN)  # it stays ready, and nothing tells when there is one
        except Exception as problem:
            # The next reader is served all the same.
            said = printable(f"{type(problem).__name__}: {problem}"[:1000])
            sys.stderr.write(f"safeclawd: a defect, please report it: metrics: {said}\n")

    def _serve(self, sock: socket.socket) -> None:
        with sock:
            deadline = time.monotonic() + _PATIENCE
            head = _request(sock, deadline)
            status, kind, body = self._answer(sock, head)
            answer = (
                f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\n"
                f"Content-Length: {len(body)}\r\nConnection: close\r\n\r\n"
            ).encode()
            sock.settimeout(_PATIENCE)
            sock.sendall(answer if head.startswith(b"HEAD ") else answer + body)
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_WR)

    def _answer(self, sock: socket.socket, head: bytes) -> tuple[str, str, bytes]:
        plain = "text/plain; charset=utf-8"
        words = head.split(b"\r\n", 1)[0].split(b" ")
        if sock.family == socket.AF_UNIX and not self._allowed(peer := peer_of(sock)):
            self.refused.put(peer)
            self._wake()
            return "403 Forbidden", plain, b"only for those who may read everything\n"
        if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
            return "400 Bad Request", plain, b"not a request\n"
        if words[0] not in (b"GET", b"HEAD"):
            return "405 Method Not Allowed", plain, b"only GET\n"
        if words[1].partition(b"?")[0] != b"/metrics":
            return "404 Not Found", plain, b"there is only /metrics\n"
        body = self._body()
        if body is None:
            return "503 Service Unavailable", plain, b"the broker does not answer\n"
        return "200 OK", openmetrics.CONTENT_TYPE, body

    def _body(self) -> bytes | None:
        if self._kept is not None and time.monotonic() - self._kept[0] < _FRESH:
            return self._kept[1]
        now = self._snapshot(_LOOP_PATIENCE)
        if now is None:
            return None
        body = openmetrics.text(now).encode()
        self._kept = time.monotonic(), body
        return body


def _request(sock: socket.socket, deadline: float) -> bytes:
    """Return a request's head; what was sent until then, when it is too long.  OSError."""
    data = b""
    while b"\r\n\r\n" not in data and len(data) < _REQUEST_MAX:
        left = deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError("the reader does not ask")
        sock.settimeout(left)
        more = sock.recv(_REQUEST_MAX)
        if not more:
            break
        data += more
    return data
