"""A real systemd-journald in a mount namespace of its own, for every kind of test."""

from __future__ import annotations

import importlib
import os
import signal
import socket
import subprocess
from pathlib import Path
from typing import Any

JOURNALD = Path("/lib/systemd/systemd-journald")
CONFIG = "[Journal]\\nStorage=volatile\\nRateLimitIntervalSec=0\\nRateLimitBurst=0\\nReadKMsg=no\\n"
SETUP = f"""
set -e
mount -t tmpfs tmpfs /run
mkdir -p /run/systemd/journal /run/systemd/journald.conf.d /run/log/journal
printf '{CONFIG}' > /run/systemd/journald.conf.d/test.conf
echo ready
exec cat
"""


class Journald:
    """A systemd-journald with a /run of its own, which can be stopped and started."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._process: subprocess.Popen[bytes] | None = None
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", SETUP],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        root = Path(f"/proc/{self._holder.pid}/root")
        self.socket = root / "run/systemd/journal/socket"
        self.files = root / "run/log/journal"

    def start(self) -> None:
        notify = self._place / "notify"
        notify.unlink(missing_ok=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as ready:
            ready.bind(str(notify))
            ready.settimeout(30)
            self._process = subprocess.Popen(
                ["nsenter", f"--mount=/proc/{self._holder.pid}/ns/mnt", str(JOURNALD)],
                env={**os.environ, "NOTIFY_SOCKET": str(notify)},
                stderr=subprocess.DEVNULL,
            )
            while b"READY=1" not in ready.recv(4096):
                pass

    @property
    def namespace(self) -> str:
        """The mount namespace in which this journald is the system's."""
        return f"/proc/{self._holder.pid}/ns/mnt"

    def signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait()
            self._process = None

    def close(self) -> None:
        self.stop()
        self._holder.communicate()

    def entries(self, count: int) -> list[dict[str, Any]]:
        """Wait until ``count`` entries of safeclaw are there; return them."""
        module: Any = importlib.import_module("systemd.journal")
        found: list[dict[str, Any]] = []
        with module.Reader(path=str(self.files)) as reader:
            reader.add_match(SYSLOG_IDENTIFIER="safeclaw")
            while True:
                found += list(reader)
                if len(found) >= count:
                    return found
                reader.wait(5)

    def journalctl(self, *arguments: str) -> str:
        command = ["journalctl", f"--directory={self.files}", "--no-pager", "-o", "cat", *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout
