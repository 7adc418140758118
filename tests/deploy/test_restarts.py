"""What is restarted under agents that work: the broker, journald, the machine; nothing is lost.

Under systemd-nspawn the kernel, and with it its boot id and its boot clock, is the host's: to
the chain the machine's reboots are one boot.  That records of two boots verify is a unit test.
"""

from __future__ import annotations

import re

import pytest

from tests.deploy.deployed import Deployed

AGENTS = ("ada", "bob", "cyd")


@pytest.fixture(scope="module", name="three")
def _three(deployed: Deployed) -> Deployed:
    """The machine, with three agents that work."""
    for name in AGENTS:
        deployed.worker(name)
    deployed.machine.systemctl("enable", "safeclaw-agent@ada")
    return deployed


@pytest.mark.parametrize(
    "how", [("restart",), ("kill", "--signal=KILL", "--kill-whom=main")], ids=["restart", "kill"]
)
def test_three_agents_outlive_their_broker(three: Deployed, how: tuple[str, ...]) -> None:
    machine = three.machine
    before = {name: three.pid(name) for name in AGENTS}
    broker = machine.show("safeclawd", "MainPID", "NRestarts")
    machine.systemctl(*how, "safeclawd.service")
    for name in AGENTS:
        three.goes_on(name)
        three.accounted(name)
    assert {name: three.pid(name) for name in AGENTS} == before
    after = machine.show("safeclawd", "MainPID", "NRestarts")
    assert after["MainPID"] != broker["MainPID"]
    assert int(after["NRestarts"]) == int(broker["NRestarts"]) + (how[0] == "kill")
    assert len(three.records("--type", "session_start")) == len(AGENTS)
    assert not three.records("--type", "session_end")
    assert not three.records("--type", "recovery")
    assert ": intact\n" in three.verify("--journald")


@pytest.mark.parametrize("how", ["restart", "kill"])
def test_a_journald_that_is_restarted_misses_nothing(three: Deployed, how: str) -> None:
    machine = three.machine
    words = ("kill", "--signal=KILL", "--kill-whom=main") if how == "kill" else ("restart",)
    before = machine.show("systemd-journald", "MainPID")
    machine.systemctl(*words, "systemd-journald.service")
    for name in AGENTS:
        three.goes_on(name)
    assert machine.show("systemd-journald", "MainPID") != before
    said = three.verify("--journald")
    assert ": intact\n" in said
    assert "nothing before record" not in said
    # One that is killed may take along what it has just received.
    lost = re.search(r"journald lost (\d+) records", said)
    assert lost is None or (how == "kill" and lost[1] == "1"), said


def test_what_journald_has_forgotten_is_named_and_no_tampering(three: Deployed) -> None:
    machine = three.machine
    machine.run("journalctl", "--rotate", "--vacuum-time=1s")
    for name in AGENTS:
        three.goes_on(name)
    first = min(three.forwarded())
    assert first > 0
    said = three.verify("--journald")
    assert ": intact\n" in said
    assert f"note: journald has nothing before record {first}, or forgot it\n" in said
    assert "journald lost" not in said


def test_a_reboot_ends_every_session_in_order(three: Deployed) -> None:
    three.machine.reboot()
    three.goes_on("ada")
    for name in AGENTS:
        three.accounted(name)
        (end,) = three.records("--agent", name, "--type", "session_end")
        assert end["reason"] == "stopped by SIGTERM"
    assert not three.records("--type", "recovery")
    assert ": intact\n" in three.verify("--journald")


def test_after_a_power_cut_the_chain_says_what_may_be_missing(three: Deployed) -> None:
    machine = three.machine
    machine.write("/etc/safeclaw/safeclawd.yaml", "grace: 0  # nobody is waited for\n")
    for name in ("bob", "cyd"):
        three.start(name)
    working = {name: three.records("--agent", name)[-1]["session"] for name in AGENTS}
    made = {name: set(three.made(name)) for name in AGENTS}
    machine.cut_power()
    for name, session in working.items():
        machine.wait_for(f"SAFECLAW_SESSION={session}", "SAFECLAW_TYPE=session_end")
        recovery, end = three.records("--session", session)[-2:]
        assert recovery["type"] == "recovery"
        assert "its last records may be missing" in recovery["reason"]
        assert end["reason"] == "closed by the next start of a broker"
        # What was seen on disk before is recorded: only what was on its way is lost.
        assert made[name] <= three.created(name)
    three.goes_on("ada")
    assert ": intact\n" in three.verify("--journald")


def test_what_a_limit_drops_is_named_and_no_tampering(deployed: Deployed) -> None:
    machine = deployed.machine
    limit = "[Journal]\nRateLimitIntervalSec=1h\nRateLimitBurst=10\n"
    machine.systemctl("disable", "--now", "safeclaw-agent@ada")
    machine.write("/etc/systemd/journald.conf.d/limit.conf", limit)
    machine.systemctl("restart", "systemd-journald")
    deployed.agent("dan", "/usr/bin/sh -c 'for i in 1 2 3 4 5; do touch $i; done'")

    def run() -> int:
        """Run the agent to its end; return the number of its last record."""
        machine.systemctl("start", "--wait", "safeclaw-agent@dan")
        return int(deployed.records("--agent", "dan", "--type", "session_end")[-1]["seq"])

    # As it is shipped, the broker's unit is exempt.
    machine.wait_for(f"SAFECLAW_SEQ={run()}")
    assert "journald lost" not in deployed.verify("--journald")

    unit = "/etc/systemd/system/safeclawd.service.d/limit.conf"
    machine.write(unit, "[Service]\nLogRateLimitIntervalSec=1h\nLogRateLimitBurst=10\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "safeclawd.service")
    run()
    machine.run("rm", unit)
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "safeclawd.service")
    last = run()
    machine.wait_for(f"SAFECLAW_SEQ={last}")
    kept = deployed.forwarded()
    lost = set(range(min(kept), last)) - kept
    said = deployed.verify("--journald")
    assert ": intact\n" in said
    named = re.search(r"journald lost (\d+) records between those that it has: (.*)", said)
    assert named is not None, said
    assert int(named[1]) == len(lost) > 0
    stretches = [stretch.split(" to ") for stretch in named[2].split(", ")]
    assert lost == {
        number for ends in stretches for number in range(int(ends[0]), int(ends[-1]) + 1)
    }
