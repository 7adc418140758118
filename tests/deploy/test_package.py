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


def test_no_service_is_more_exposed_than_it_has_to_be(machine: Booted) -> None:
    # The threshold is in tenths; above it, systemd-analyze fails.  What an agent's unit leaves open
    # is what its supervisor needs to put up the inner walls: the unit says why.
    for unit, most in (
        ("safeclawd", 10),
        ("safeclaw-verify", 10),
        ("safeclaw-evidence", 10),
        ("safeclaw-agent@demo", 40),
    ):
        machine.run("systemd-analyze", "security", f"--threshold={most}", f"{unit}.service")
    bare = machine.run(
        "systemd-analyze", "security", "--threshold=40", "safeclaw-alert@x.service", check=False
    )
    assert bare.returncode != 0, "a unit without any hardening must not pass"
