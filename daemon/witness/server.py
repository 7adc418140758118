"""A witness over HTTP: a thread for each connection, as many as :data:`CONNECTIONS`.

It needs no secrecy on the wire: what comes in is signed by the log, what goes out by
the witness.  Whoever wants TLS puts a reverse proxy in front.
"""

from __future__ import annotations

import re
import socket
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Final
from urllib.parse import unquote

from safeclaw.daemon.journal.note import NoteError
from safeclaw.daemon.journal.text import safe
from safeclaw.daemon.witness import protocol
from safeclaw.daemon.witness.protocol import Refused
from safeclaw.daemon.witness.store import Store
from safeclaw.errors import JournalError

CONNECTIONS: Final = 64
#: How long a connection may say nothing, in seconds.
PATIENCE: Final = 30.0
_LENGTH: Final = re.compile("[0-9]{1,16}")
_TEXT: Final = "text/plain; charset=utf-8"


class Server(ThreadingHTTPServer):
    """Serves one store until it is shut down."""

    daemon_threads = True
    request_queue_size = CONNECTIONS

    def __init__(self, address: tuple[str, int], store: Store) -> None:
        """Listen; port 0 is any free one.  OSError."""
        self.store = store
        self._room = threading.BoundedSemaphore(CONNECTIONS)
        if ":" in address[0]:
            self.address_family = socket.AF_INET6
        super().__init__(address, _Handler)

    def process_request(self, request: object, client_address: object) -> None:
        """Begin a connection, or drop it where there are too many."""
        if not self._room.acquire(blocking=False):
            self.shutdown_request(request)  # type: ignore[arg-type]
            return
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def process_request_thread(self, request: object, client_address: object) -> None:
        """Serve a connection to its end."""
        try:
            super().process_request_thread(request, client_address)  # type: ignore[arg-type]
        finally:
            self._room.release()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say in one line that a connection broke: a client can do that as often as it likes."""
        del request
        print(safe(f"{client_address}: {sys.exception()!r}"), file=sys.stderr, flush=True)


class _Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    timeout = PATIENCE
    server_version = "safeclaw-witness"
    sys_version = ""

    @property
    def _store(self) -> Store:
        assert isinstance(self.server, Server)
        return self.server.store

    def do_POST(self) -> None:
        """Take a checkpoint, or a key."""
        length = self.headers.get("Content-Length", "")
        known = _LENGTH.fullmatch(length)
        if not known or int(length) > protocol.REQUEST_MAX:
            self.close_connection = True  # what follows is not known to be a request
            self._answer(413 if known else 411, "the request has no length, or too much")
            return
        body = self.rfile.read(int(length))
        try:
            match self.path:
                case protocol.ADD_CHECKPOINT:
                    self._add_checkpoint(body)
                case protocol.ADD_KEY:
                    self._add_key(body)
                case _:
                    self._answer(protocol.NOT_FOUND, "no such call")
        except NoteError as error:
            self._answer(protocol.BAD_REQUEST, error.message)
        except JournalError as error:
            print(f"safeclaw: {error.message}", file=sys.stderr, flush=True)
            self._answer(500, "this witness cannot keep what it sees")

    def do_GET(self) -> None:
        """Give the latest cosigned checkpoint of a log."""
        origin = unquote(self.path.removeprefix(protocol.CHECKPOINT))
        seen = None
        if self.path.startswith(protocol.CHECKPOINT):
            try:
                seen = self._store.seen(origin)
            except JournalError as error:
                print(f"safeclaw: {error.message}", file=sys.stderr, flush=True)
        if seen is None or not seen.note:
            self._answer(protocol.NOT_FOUND, "nothing was cosigned for that log")
        else:
            self._send(protocol.OK, seen.note, _TEXT)

    def _add_checkpoint(self, body: bytes) -> None:
        answer = self._store.add_checkpoint(protocol.parse_request(body), body)
        if not isinstance(answer, Refused):
            self._send(protocol.OK, answer, _TEXT)
        elif answer.size is not None:
            self._send(answer.status, f"{answer.size}\n", protocol.SIZE_TYPE)
        else:
            self._answer(answer.status, answer.why)

    def _add_key(self, body: bytes) -> None:
        answer = self._store.add_key(body)
        if isinstance(answer, Refused):
            self._answer(answer.status, answer.why)
        else:
            self._send(protocol.OK, f"{answer.text()}\n", _TEXT)

    def _answer(self, status: int, why: str) -> None:
        self._send(status, f"{why}\n", _TEXT)

    def _send(self, status: int, text: str, kind: str) -> None:
        data = text.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's
        """Log a request as one line; what a client chose is escaped."""
        print(safe(f"{self.address_string()} {format % args}"), file=sys.stderr, flush=True)
