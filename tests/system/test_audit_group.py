"""The system's journal is read by members of the audit group, who can change none of it."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.system.conftest import Person

#: A group that nobody is a member of by the user database.
AUDITORS = 64123
PATIENCE = 60.0


class System:
    """A system's broker as systemd starts it: umask and group of the unit."""

    def __init__(self, base: Path) -> None:
        base.chmod(0o755)
        self.state, config, heard = base / "state", base / "config", base / "notify"
        self.state.mkdir()
        os.chown(self.state, 0, AUDITORS)
        self.state.chmod(0o750)
        (config / "policies").mkdir(parents=True)
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
            manager.bind(str(heard))
            manager.settimeout(PATIENCE)
            self.process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "safeclaw.daemon.cli.safeclawd", "--system"),
                    *("--state", str(self.state), "--config", str(config)),
                    *("--socket", str(base / "broker.sock")),
                ],
                env={**os.environ, "NOTIFY_SOCKET": str(heard)},
                group=AUDITORS,
            )
            while b"READY=1" not in manager.recv(4096):
                pass

    def close(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        self.process.wait(PATIENCE)


@pytest.fixture(name="system")
def _system() -> Iterator[System]:
    if os.geteuid() != 0:
        pytest.skip("not root: no system's broker with a group of its own")
    with tempfile.TemporaryDirectory(prefix="safeclaw-audit-") as base:
        system = System(Path(base))
        yield system
        system.close()


def as_member(person: Person, groups: list[int], *command: str) -> subprocess.CompletedProcess[str]:
    environment: dict[str, str] = vars(person)["_environment"]
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent", **environment},
        cwd="/",
        user=person.uid,
        group=person.uid,
        extra_groups=groups,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("person", ["ordinary"], indirect=True)
def test_an_auditor_reads_and_verifies_without_root_and_changes_nothing(
    person: Person, system: System
) -> None:
    state = ("--state", str(system.state))

    def audit(*words: str, groups: list[int]) -> subprocess.CompletedProcess[str]:
        return as_member(person, groups, *person.command("audit", *words, *state))

    verified = audit("verify", groups=[AUDITORS])
    assert verified.returncode == 0, verified.stdout + verified.stderr
    assert "a writer is at work" in verified.stdout
    shown = audit("show", "--json", groups=[AUDITORS])
    first: dict[str, Any] = json.loads(shown.stdout.splitlines()[0])
    assert first["type"] == "genesis"
    keys = audit("keys", "show", groups=[AUDITORS])
    assert first["detail"]["public_key"] in keys.stdout
    assert audit("summary", groups=[AUDITORS]).returncode == 0
    # The same without the group: nothing, and said in one line.
    refused = audit("verify", groups=[])
    assert refused.returncode == 3, refused.stdout
    assert "Permission denied" in refused.stdout
    for words in (("show",), ("tail",), ("summary",), ("keys", "show")):
        denied = audit(*words, groups=[])
        assert denied.returncode != 0
        assert denied.stderr.startswith("safeclaw: ")
        assert "Traceback" not in denied.stderr
    # The group lets nobody write, read a private key, or take the writer's lock.
    rolled = audit("keys", "roll", groups=[AUDITORS])
    assert rolled.returncode != 0
    assert "hint: " in rolled.stderr
    journal = system.state / "journal"
    for path in (*journal.iterdir(), journal, system.state / "keys"):
        tried = as_member(person, [AUDITORS], "sh", "-c", f"test -w '{path}'")
        assert tried.returncode != 0, path
    for path in (system.state / "keys" / "journal.key", journal / "lock"):
        assert as_member(person, [AUDITORS], "cat", str(path)).returncode != 0, path
