"""Names where the agent has no network of its own: an /etc/hosts that says what rules allow.

There is no nameserver for the agent then: one would be a way out.  Whoever opens
/etc/hosts is handed the host's own with a line for each name that a rule spells
out, as the host resolves it now.  What is written there is bound, as answers of
the session's resolver are in full isolation, so that ``host: api.example.com``
means the same.  A wildcard names nothing that could be written down.
"""

from __future__ import annotations

import errno
import os
import socket
import threading
import time

from safeclaw.policies.model import Attempt, Decision, NameTarget, Verdict
from safeclaw.sandbox import dns
from safeclaw.sandbox.gate import Gate
from safeclaw.sandbox.names import Names

PATH = "/etc/hosts"
#: How long an answer is written down before it is asked for again, and binds, in seconds.
_FRESH, _BINDS = 60, 600
#: How long the resolving of all names may take, in seconds: the agent waits for it.
_PATIENCE = 3.0


class Hosts:
    """The names that one session may know.  Safe for threads; ``open`` may take its time."""

    def __init__(self, asked: tuple[str, ...], bound: Names, gate: Gate, pid: int) -> None:
        self._asked = asked
        self._bound = bound
        self._gate = gate
        self._pid = pid
        self._said: tuple[Verdict, ...] = ()
        self._allowed: tuple[str, ...] = ()
        self._lock = threading.Lock()
        self._found: dict[str, tuple[str, ...]] = {}
        self._until = 0.0

    def open(self) -> int:
        """Return a descriptor of the file as it is now, for reading only."""
        with self._lock:
            if self._judged_anew() or time.monotonic() >= self._until:
                self._resolve()
                self._until = time.monotonic() + _FRESH
            text = self._text()
        memory = os.memfd_create("hosts", os.MFD_CLOEXEC)
        with os.fdopen(memory, "wb") as out:
            out.write(text.encode())
            out.flush()
            return os.open(f"/proc/self/fd/{memory}", os.O_RDONLY | os.O_CLOEXEC)

    def _text(self) -> str:
        try:
            with open(PATH, encoding="utf-8", errors="replace") as source:
                text = source.read()
        except OSError:
            text = ""
        found = self._found.copy()
        for name in sorted(found.keys() & set(self._allowed)):
            text += "".join(f"\n{address}\t{name}" for address in found[name])
        return text.rstrip("\n") + "\n"

    def _judged_anew(self) -> bool:
        """Have the names judged and recorded that may be asked for; False: as they were before.

        SAFETY: what was decided holds only for as long as the policy says the same.
        """
        attempts = [Attempt("network.resolve", NameTarget(name)) for name in self._asked]
        said = tuple(self._gate.peek(attempt) for attempt in attempts)
        if said == self._said:
            return False
        self._allowed = tuple(
            name
            for name, attempt in zip(self._asked, attempts, strict=True)
            if self._gate.judge(attempt, pid=self._pid, exe="", enforced_by="resolver").decision
            is Decision.ALLOW
        )
        self._said = said
        return True

    def _resolve(self) -> None:
        threads = [
            threading.Thread(target=self._ask, args=(name,), daemon=True) for name in self._allowed
        ]
        try:
            for thread in threads:
                thread.start()
        except RuntimeError:  # no more threads: the next who opens it may have them
            raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN)) from None
        until = time.monotonic() + _PATIENCE
        for thread in threads:
            thread.join(max(0.0, until - time.monotonic()))

    def _ask(self, name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        addresses = tuple(dict.fromkeys(str(answer[4][0]) for answer in answers))
        # INVARIANT: bound before the agent learns of it.
        self._bound.bind(name, dns.Answer(addresses, _BINDS))
        self._found[name] = tuple(one for one in addresses if name in self._bound.of(one))
