"""A witness from the package: made by hand, served by its unit, pushed to from a chain."""

from __future__ import annotations

import re

from tests.deploy.booted import Booted
from tests.deploy.deployed import Deployed
from tests.deploy.test_package import UNITS

AS_WITNESS = ("runuser", "-u", "_safeclaw-witness", "--", "safeclaw", "audit", "witness")
URL = "http://127.0.0.1:7480"
#: Ends when somebody listens there.
LISTENS = """\
import socket
while True:
    try:
        socket.create_connection(("127.0.0.1", 7480)).close()
        break
    except ConnectionRefusedError:
        pass
"""


def test_a_witness_is_made_enabled_and_pushed_to(deployed: Deployed) -> None:
    machine = deployed.machine
    # Installed, it does nothing: there is no key, and the unit makes none.
    assert machine.run("systemctl", "is-enabled", "safeclaw-witness", check=False).returncode != 0
    machine.systemctl("start", "safeclaw-witness")
    assert machine.show("safeclaw-witness", "ActiveState") == {"ActiveState": "inactive"}

    name = "witness.example.com/w1"
    key = machine.run(*AS_WITNESS, "init", "--name", name).stdout.strip()
    machine.run("safeclaw", "audit", "keys", "export", "--output", "/tmp/public-keys")
    machine.run(*AS_WITNESS, "add", "/tmp/public-keys")
    machine.systemctl("enable", "--now", "safeclaw-witness")
    machine.run("python3", "-c", LISTENS)

    pushed = machine.run("safeclaw", "audit", "witness", "push", URL, "--witness-key", key)
    assert re.search(r"^[0-9]+ records cosigned ", pushed.stdout)
    verified = machine.run("safeclaw", "audit", "verify", "--witness", URL, "--witness-key", key)
    assert "intact" in verified.stdout.splitlines()[0]
    assert f"cosigned by {name}" in verified.stdout
    # What it saw is there after a restart, and is its own.
    before = machine.run(*AS_WITNESS, "show").stdout
    machine.systemctl("restart", "safeclaw-witness")
    assert machine.run(*AS_WITNESS, "show").stdout == before
    told = machine.run("stat", "-c", "%U %a", "/var/lib/safeclaw-witness").stdout.split()
    assert told == ["_safeclaw-witness", "700"]


def test_its_walls_are_as_measured(machine: Booted) -> None:
    unit = (UNITS / "safeclaw-witness.service").read_text()
    written = re.search(r"exposure of (\d\.\d)", unit)
    assert written is not None
    said = machine.run("systemd-analyze", "security", "safeclaw-witness.service").stdout
    measured = re.search(r"Overall exposure level for \S+: (\d\.\d)", said)
    assert measured is not None
    assert measured[1] == written[1]
