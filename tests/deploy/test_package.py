"""The package: what lintian says, what it installs, what stays when it goes."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.deploy.booted import Booted

UNITS = Path(__file__).resolve().parents[2] / "systemd"


def test_lintian_has_no_errors(built: Path) -> None:
    (changes,) = built.glob("*.changes")
    done = subprocess.run(
        ["lintian", "--allow-root", "--fail-on=error,warning", str(changes)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_unit_is_loaded_and_verified(machine: Booted) -> None:
    names = [
        path.name.replace("@.", "@demo.")
        for path in UNITS.glob("*.*")
        if path.suffix in (".service", ".socket", ".timer", ".slice")
    ]
    assert len(names) >= 9
    said = machine.run("systemd-analyze", "--man=no", "verify", *names)
    assert said.stdout + said.stderr == ""


def test_the_broker_is_exposed_at_most_to_two(machine: Booted) -> None:
    # The threshold is in tenths; above it, systemd-analyze fails.
    machine.run("systemd-analyze", "security", "--threshold=20", "safeclawd.service")
    bare = machine.run(
        "systemd-analyze", "security", "--threshold=20", "safeclaw-alert@x.service", check=False
    )
    assert bare.returncode != 0, "a unit without any hardening must not pass"
