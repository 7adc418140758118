"""The review command of an operator, on a real systemd-journald of the test's own."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from tests.real_journald import Journald
from tests.system.conftest import Person


@pytest.mark.skipif(os.geteuid() != 0, reason="not root: cannot start a journald")
def test_journalctl_lists_the_same_denials_with_the_hashes_of_the_chain(
    person: Person, tmp_path: Path
) -> None:
    person.write("agent.sh", "cat /etc/shadow\ncat /etc/gshadow\ntrue\n")
    journald = Journald(tmp_path)
    try:
        journald.start()
        person.within = ("nsenter", f"--mount={journald.namespace}", f"--wd={person.workspace}")
        done = person.safeclaw("run", "--", "sh", "agent.sh")
        verified = person.safeclaw("audit", "verify")
        person.within = ()
        assert done.returncode == 0, done.stderr
        assert verified.returncode == 0, verified.stdout
        chain = person.records()
        journald.entries(len(chain))
        listed = journald.journalctl("-t", "safeclaw", "SAFECLAW_DECISION=deny", "-o", "json")
    finally:
        journald.close()
    denied = [record for record in chain if record.get("decision") == "deny"]
    assert len(denied) >= 2
    assert [
        (int(entry["SAFECLAW_SEQ"]), entry["SAFECLAW_PREV_HASH"], entry["SAFECLAW_RULE"])
        for entry in map(json.loads, listed.splitlines())
    ] == [(record["seq"], record["prev"], record["rule"]) for record in denied]
