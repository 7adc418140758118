"""A broker that is stopped: systemd ends it and starts another; meanwhile nothing is allowed."""

from __future__ import annotations

import time

from tests.deploy.deployed import Deployed

#: How long a lease holds after the broker last answered, in seconds.
LEASE = 0.5
PROTOCOL = "/usr/lib/safeclaw/lib/python3.*/site-packages/safeclaw/daemon/protocol.py"


def test_a_stopped_broker_is_replaced_and_meanwhile_nothing_is_allowed(deployed: Deployed) -> None:
    machine = deployed.machine
    drop_in = "/etc/systemd/system/safeclawd.service.d/quick.conf"
    machine.write(drop_in, "[Service]\nWatchdogSec=2s\n")
    machine.systemctl("daemon-reload")
    machine.systemctl("restart", "safeclawd.service")
    deployed.worker("held")
    # The same without the one defence: a supervisor whose lease does not lapse.
    machine.sh(f"sed -i.held 's/^LEASE_NS = .*/LEASE_NS = 10**15/' {PROTOCOL}")
    deployed.worker("loose")
    machine.sh(f"for file in {PROTOCOL}; do mv $file.held $file; done")
    before = machine.show("safeclawd", "MainPID", "NRestarts")

    with machine.watch("_PID=1", "UNIT=safeclawd.service") as seen:
        machine.run("kill", "-STOP", before["MainPID"])
        while machine.read(f"/proc/{before['MainPID']}/stat").rpartition(")")[2].split()[0] != "T":
            pass
        stopped = time.time()
        while "Watchdog timeout" not in seen()["MESSAGE"]:
            pass
        while not seen()["MESSAGE"].startswith("Started safeclawd.service"):
            pass
    after = machine.show("safeclawd", "MainPID", "NRestarts", "ExecMainStartTimestampMonotonic")
    since = int(after["ExecMainStartTimestampMonotonic"]) / 1e6
    replaced = since + time.time() - time.monotonic()
    assert after["MainPID"] != before["MainPID"]
    assert int(after["NRestarts"]) == int(before["NRestarts"]) + 1

    for name in ("held", "loose"):
        deployed.goes_on(name)
        deployed.accounted(name)
    made = {
        name: [at for at in deployed.made(name).values() if stopped + LEASE < at < replaced]
        for name in ("held", "loose")
    }
    # What was allowed while the lease held may be carried out a moment later: it has one attempt
    # at a time.
    assert len(made["held"]) <= 1
    assert len(made["loose"]) > 10
    assert ": intact\n" in deployed.verify("--journald")
