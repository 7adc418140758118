"""Forwarding the chain to systemd-journald over its native protocol.

Each record goes out after it is durable, read back from the segments, on a
non-blocking socket: a slow or absent journald never holds up a decision and is
no error, but :attr:`Forwarder.problem` says so.  A cursor file remembers how
far it got, so that nothing is skipped; after a crash a few records may come
twice.  See systemd's "Native Journal Protocol" for the wire form.
"""

from __future__ import annotations

import array
import contextlib
import errno
import fcntl
import os
import socket
import struct
import time
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.journal import files, retention
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.daemon.journal.record import Record, RecordError, RecordType, decode
from safeclaw.daemon.journal.text import summary, target_text

SOCKET: Final = Path("/run/systemd/journal/socket")
CURSOR: Final = "journald.cursor"
#: How many records one call of :meth:`Forwarder.pump` sends at most.
BURST: Final = 4096
SAVE_NS: Final = 1_000_000_000

_NOTICE, _WARNING, _ERROR, _INFO = "5", "4", "3", "6"
_PRIORITY: Final = {
    RecordType.VIOLATION: _ERROR,
    RecordType.FAULT: _ERROR,
    RecordType.GAP: _ERROR,
    RecordType.KILL: _WARNING,
    RecordType.LIMIT: _WARNING,
    RecordType.RECOVERY: _WARNING,
    RecordType.CLOCK_STEP: _NOTICE,
}


class Cursor(msgspec.Struct, frozen=True):
    """Where record ``seq``, the next to be sent, begins."""

    chain: str
    seq: int = 0
    segment: int = 1
    offset: int = 0


def message_id(kind: RecordType) -> str:
    """Return the MESSAGE_ID of a record type: fixed, 32 hex digits."""
    return sha256(f"safeclaw.journal.{kind}".encode()).hexdigest()[:32]


def _field(name: str, value: str) -> bytes:
    data = value.encode("utf-8", "backslashreplace")
    if b"\n" in data:
        return name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
    return name.encode() + b"=" + data + b"\n"


def message(record: Record, leaf: str) -> bytes:
    """Return the datagram for a record whose leaf (hex) is ``leaf``."""
    priority = _PRIORITY.get(record.type, _INFO)
    if record.decision == "deny":
        priority = _WARNING
    detail = record.detail or {}
    fields: list[tuple[str, str | None]] = [
        ("MESSAGE", summary(record)),
        ("MESSAGE_ID", message_id(record.type)),
        ("PRIORITY", priority),
        ("SYSLOG_IDENTIFIER", "safeclaw"),
        ("SAFECLAW_CHAIN_ID", record.chain),
        ("SAFECLAW_SEQ", str(record.seq)),
        ("SAFECLAW_PREV_HASH", record.prev),
        ("SAFECLAW_ENTRY_HASH", leaf),
        ("SAFECLAW_TYPE", record.type),
        ("SAFECLAW_SESSION", record.session),
        ("SAFECLAW_AGENT", record.agent),
        ("SAFECLAW_ACTION", record.action),
        ("SAFECLAW_TARGET", target_text(record.target) if record.target else None),
        ("SAFECLAW_DECISION", record.decision),
        ("SAFECLAW_RULE", record.rule),
        ("SAFECLAW_REASON", record.reason),
        ("SAFECLAW_POLICY", record.policy.name if record.policy else None),
        ("SAFECLAW_POLICY_SHA256", record.policy.sha256 if record.policy else None),
        ("SAFECLAW_FINGERPRINT", record.fingerprint),
    ]
    if record.type is RecordType.CHECKPOINT:
        fields += [
            ("SAFECLAW_SIZE", str(detail.get("size"))),
            ("SAFECLAW_ROOT", str(detail.get("root"))),
            ("SAFECLAW_NOTE", str(detail.get("note"))),
        ]
    return b"".join(_field(name, value) for name, value in fields if value is not None)


class Forwarder:
    """Sends a journal's durable records to journald; owned by one thread."""

    def __init__(self, directory: Path, chain: str, path: Path = SOCKET) -> None:
        self._directory = directory
        self._path = path
        self._socket: socket.socket | None = None
        self._segment_fd = -1
        self._segment = 0
        self._buffer = b""
        self._at = 0  # of the cursor, in the buffer
        self._saved_ns = 0
        self.problem: str | None = None
        self._cursor = Cursor(chain)
        with contextlib.suppress(OSError, msgspec.MsgspecError):
            content = (directory / CURSOR).read_bytes()
            cursor = msgspec.json.decode(content, type=Cursor)
            if cursor.chain == chain:
                self._cursor = cursor

    @property
    def next_seq(self) -> int:
        """The number of the record that is to be sent next."""
        return self._cursor.seq

    def fileno(self) -> int:
        """Return the socket to poll for POLLOUT when journald takes no more; -1 without one."""
        return -1 if self._socket is None else self._socket.fileno()

    def pump(self, durable: int) -> int:
        """Send what is durable (up to number ``durable``) and journald takes now.

        Returns how many records are still to be sent; when there are some, call
        again soon.  Never blocks on journald, never raises for its absence.
        """
        self.problem = None
        sent = 0
        try:
            while self._cursor.seq <= durable and sent < BURST and self._send_next():
                sent += 1
            if sent and time.monotonic_ns() - self._saved_ns >= SAVE_NS:
                self._save()
        except OSError as error:
            self.problem = f"{error.filename or self._path}: {error.strerror}"
            self._disconnect()
        except RecordError as error:
            self.problem = f"record {self._cursor.seq}: {error.message}"
        except Exception as error:  # its thread goes on, and says so
            self.problem = f"record {self._cursor.seq}: a defect: {type(error).__name__}: {error}"
            self._disconnect()
        return durable + 1 - self._cursor.seq

    def close(self) -> None:
        """Save the cursor and let go of everything."""
        with contextlib.suppress(OSError):
            self._save()
        self._disconnect()
        self._drop_segment()

    def _save(self) -> None:
        self._saved_ns = time.monotonic_ns()
        content = msgspec.json.encode(self._cursor)
        files.replace(self._directory / CURSOR, content, mode=0o600, sync=False)

    def _disconnect(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _drop_segment(self) -> None:
        if self._segment_fd >= 0:
            os.close(self._segment_fd)
        self._segment_fd = -1
        self._buffer, self._at = b"", 0

    def _next_line(self) -> bytes:
        """Return the line at the cursor, which is known to be on disk."""
        while True:
            cursor = self._cursor
            if self._segment_fd < 0 or self._segment != cursor.segment:
                self._drop_segment()
                path = self._directory / files.segment_name(cursor.segment)
                try:
                    self._segment_fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                except FileNotFoundError:
                    if not self._skip_pruned():
                        raise
                    continue
                self._segment = cursor.segment
            end = self._buffer.find(b"\n", self._at)
            if end >= 0:
                return self._buffer[self._at : end]
            self._buffer, self._at = self._buffer[self._at :], 0
            more = os.pread(self._segment_fd, 1 << 18, cursor.offset + len(self._buffer))
            if more:
                self._buffer += more
            elif self._buffer:
                raise OSError(errno.EIO, "a record that was written is not there")
            else:
                self._cursor = Cursor(cursor.chain, cursor.seq, cursor.segment + 1, 0)

    def _skip_pruned(self) -> bool:
        """Go on at the first segment that is left; False when that is not ahead."""
        found = files.segments(self._directory)
        if not found or found[0][0] <= self._cursor.segment:
            return False
        first = retention.first_record(found[0][1])
        if first is None:
            return False
        self._cursor = Cursor(self._cursor.chain, first.seq, found[0][0], 0)
        return True

    def _send_next(self) -> bool:
        line = self._next_line()
        data = message(decode(line), leaf_hash(line).hex())
        if self._socket is None:
            self._socket = socket.socket(
                socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK | socket.SOCK_CLOEXEC
            )
            self._socket.connect(str(self._path))
        try:
            self._socket.send(data)
        except BlockingIOError:
            return False
        except OSError as error:
            if error.errno not in (errno.EMSGSIZE, errno.ENOBUFS):
                raise
            try:
                self._send_memfd(data)
            except BlockingIOError:
                return False
        cursor = self._cursor
        self._cursor = Cursor(
            cursor.chain, cursor.seq + 1, cursor.segment, cursor.offset + len(line) + 1
        )
        self._at += len(line) + 1
        return True

    def _send_memfd(self, data: bytes) -> None:
        """Hand over a message too large for a datagram as a sealed memfd."""
        assert self._socket is not None
        fd = os.memfd_create("safeclaw-record", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            seals = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
            fcntl.fcntl(fd, fcntl.F_ADD_SEALS, seals)
            rights = array.array("i", [fd])
            self._socket.sendmsg([], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, rights)])
        finally:
            os.close(fd)
