"""Two weeks on a real chain, and the real Git history of the policy that changed in them."""

from __future__ import annotations

import subprocess
from hashlib import sha256
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, PolicyRef, RecordType
from tests.journals import DAY, Host

POLICY = b'version: "1.0"\nrules:\n  - action: file.read\n    path: "src/**"\n    effect: allow\n'
CHANGED = POLICY.replace(b"src/**", b"**")


def git(place: Path, *arguments: str) -> None:
    command = ["git", "-C", str(place), "-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run([*command, *arguments], check=True, capture_output=True)


@pytest.fixture
def repository(tmp_path: Path) -> Path:
    place = tmp_path / "work"
    (place / ".safeclaw").mkdir(parents=True)
    git(place, "init", "-q")
    for number, content in enumerate((POLICY, CHANGED)):
        (place / ".safeclaw" / "policy.yaml").write_bytes(content)
        git(place, "add", ".safeclaw")
        git(place, "commit", "-qm", f"policy: change {number}")
    return place


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    host = Host(monkeypatch)
    place = tmp_path / "state"
    with host.open(place / "journal") as journal:
        for day in range(14):
            digest = sha256(POLICY if day < 7 else CHANGED).hexdigest()
            policy = PolicyRef(name="p", sha256=digest, version="1.0")
            journal.append(Entry(type=RecordType.POLICY_LOAD, policy=policy, detail={"rules": 3}))
            for number in range(20):
                denied = number < (1 if day < 7 else 4)
                journal.append(
                    Entry(
                        type=RecordType.DECISION,
                        session=f"s-{day}",
                        agent="[bold]x" if number else "other",
                        attempt=number,
                        action="shell.execute" if number == 3 else "file.read",
                        target={"path": f"<script>{number}"},
                        decision="deny" if denied else "allow",
                        rule="p:1" if denied else "p:2",
                        policy=policy,
                    )
                )
            host.passes(DAY)
        journal.append(Entry(type=RecordType.FAULT, reason="once"))
        journal.roll_key()
    return place


ALL = ("--since", "2020-01-01")
