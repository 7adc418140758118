"""What a broker says of itself: status, ps and metrics, against what really happened."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import time
from pathlib import Path

from tests.system.conftest import Person
from tests.system.system_broker import PATIENCE, Making, SystemBroker
from tests.system.watched import curl, denied, making, samples

__all__ = ["making"]

#: Holds memory in itself and two children, says so, and waits until it may end.
HOLD = """\
import os, sys
block = b"x" * (32 << 20)
for _ in range(2):
    if os.fork() == 0:
        block = b"y" * (32 << 20)
        print("holding", flush=True)
        sys.stdin.read()
        os._exit(0)
print("holding", flush=True)
sys.stdin.read()
os.wait(); os.wait()
"""


def holding(broker: SystemBroker, person: Person) -> subprocess.Popen[str]:
    """Start an agent of three processes; return when they hold their memory."""
    person.write("hold.py", HOLD)
    policy = str(broker.config / "policies" / "demo.yaml")
    command = person.command(
        *("run", "--broker", str(broker.socket), "--policy", policy),
        *("--", "/usr/bin/python3", "hold.py"),
    )
    person.stdin = subprocess.PIPE
    process = person.start(command, person.workspace)
    assert process.stdout is not None
    assert [process.stdout.readline() for _ in range(3)] == ["holding\n"] * 3
    return process


# ---- status


def test_status_says_what_the_chain_says(making: Making, person: Person) -> None:
    broker = making()
    broker.add("demo")
    denied(broker, person)
    with holding(broker, person) as agent:
        status = broker.ask("status")
        records = broker.records()
        decisions = [one for one in records if one["type"] == "decision"]
        assert status["sessions"] == 1
        assert status["refusals"] == 0
        agent.communicate("")
    records = broker.records()
    status = broker.ask("status")
    decisions = [one for one in records if one["type"] == "decision"]
    assert status["decisions"] == len(decisions)
    assert status["denials"] == sum(one["decision"] == "deny" for one in decisions)
    assert status["denials"] >= 5
    assert status["head"] >= records[-1]["seq"]
    assert status["chain"] == records[0]["chain"]
    assert (status["key_epoch"], status["fault"]) == (0, None)
    assert status["records"]["session_start"] == 2
    assert (status["agents"], status["keys_due"]) == (1, [])
    (load,) = [one for one in broker.ask("agent", "list") if one["name"] == "demo"]
    assert list(status["policies"]) == [load["policy"]]
    text = broker.safeclaw("status").stdout
    assert f"denied: {status['denials']}" in text
    assert f"policy in force: demo {status['policies']['demo']}" in text


def test_what_is_due_is_named(making: Making) -> None:
    broker = making(key_rotation_days=1)
    broker.add("old")
    broker.stop()
    registry = broker.state / "agents.json"
    registry.write_text(re.sub(r'"created": ?\d+', '"created": 1', registry.read_text()))
    broker.start()
    broker.ask("kill", "somebody", "--why", "as a test")
    status = broker.ask("status")
    assert status["keys_due"] == ["old"]
    assert [one["agent"] for one in status["killed"]] == ["somebody"]
    said = broker.safeclaw("status").stdout
    assert "keys due for rotation: old" in said
    assert "somebody is down since" in said


def test_counts_go_on_with_a_session_that_outlives_its_broker(
    making: Making, person: Person
) -> None:
    broker = making()
    with holding(broker, person) as agent:
        before = broker.ask("status")["decisions"]
        assert before > 0
        broker.stop()
        broker.start()
        agent.communicate("")
        # it was taken in by the first broker, and is not counted by the second again
        assert broker.ask("status")["decisions"] < before


# ---- ps


def test_ps_shows_what_a_session_uses(making: Making, person: Person) -> None:
    broker = making()
    with holding(broker, person) as agent:
        (one,) = broker.ask("ps")
        assert (one["uid"], one["agent"]) == (person.uid, "python3")
        use = one["use"]
        # the three, the first process of their namespace where there is one, and the two by which
        # the process group is held
        assert use["processes"] in (5, 6)
        assert 3 * 32 << 20 <= use["memory"] < 3 * 96 << 20
        assert 0 < use["cpu"] < 60
        own = json.loads(person.safeclaw("ps", "--json", "--broker", str(broker.socket)).stdout)
        assert [mine["session"] for mine in own] == [one["session"]]
        assert own[0]["use"]["processes"] == use["processes"]
        assert "python3 hold.py" in broker.safeclaw("ps").stdout
        agent.communicate("")
    assert broker.ask("ps") == []


def test_ps_shows_ones_own_broker_too(person: Person) -> None:
    person.write("hold.py", HOLD)
    command = person.command("run", "--broker", "embedded", "--", "/usr/bin/python3", "hold.py")
    person.stdin = subprocess.PIPE
    with person.start(command, person.workspace) as agent:
        assert agent.stdout is not None
        assert [agent.stdout.readline() for _ in range(3)] == ["holding\n"] * 3
        (one,) = json.loads(person.safeclaw("ps", "--json", "--broker", "embedded").stdout)
        assert one["use"]["processes"] in (5, 6)
        assert one["use"]["memory"] >= 3 * 32 << 20
        agent.communicate("")


# ---- metrics


def test_metrics_are_openmetrics_and_true(making: Making, person: Person) -> None:
    broker = making()
    broker.add("demo")
    denied(broker, person)
    code, text = curl(broker)
    assert code == 200
    found = samples(text)
    decisions = broker.records("--type", "decision")
    refused = sum(one["decision"] == "deny" for one in decisions)
    assert found["safeclaw_decisions_total,decision=deny"] == refused
    assert found["safeclaw_decisions_total,decision=allow"] == len(decisions) - refused
    assert found["safeclaw_records_total,type=violation"] == 0
    assert found["safeclaw_agents"] == 1
    assert found["safeclaw_fault"] == 0
    sha256 = broker.ask("status")["policies"]["demo"]
    assert found[f"safeclaw_policy_info,policy=demo,sha256={sha256}"] == 1
    assert curl(broker, "/")[0] == 404


def test_metrics_are_for_those_who_may_read_everything(
    making: Making, ordinary_user: str, person: Person
) -> None:
    broker = making()
    if person.name == "root":
        assert curl(broker)[0] == 200
        return
    refused = curl(broker, user=person.uid, group=65534, extra_groups=[])
    assert refused[0] == 403
    assert "safeclaw_" not in refused[1]
    (record,) = broker.records("--decision", "deny")
    assert (record["action"], record["subject"]["uid"]) == ("control.metrics", person.uid)


def test_readers_that_say_nothing_hold_up_no_decision(making: Making, person: Person) -> None:
    broker = making()
    idle = [socket.socket(socket.AF_UNIX) for _ in range(8)]
    for one in idle:
        one.connect(str(broker.socket.parent / "metrics.sock"))
    denied(broker, person)  # it would not end
    for one in idle:
        one.close()
    assert curl(broker)[0] == 200


def free_ports(count: int) -> list[int]:
    """Return ports for programs that cannot choose one themselves.

    Not of those that the kernel gives out: another test's socket could have it a moment later.
    """
    first, _ = map(int, Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split())
    # each of pytest-xdist's processes begins elsewhere
    candidates = range(first // 2 + os.getpid() % 1000 * 10, first)
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for port in candidates:
            sock = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                sock.bind(("127.0.0.1", port))
                found.append(port)
            if len(found) == count:
                return found
    raise AssertionError("no port is free")


def test_prometheus_scrapes_the_loopback_port(making: Making, tmp_path: Path) -> None:
    port, web = free_ports(2)
    making(metrics_port=port)
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(
        json.dumps(
            {
                "global": {"scrape_interval": "1s"},
                "scrape_configs": [
                    {"job_name": "safeclaw", "static_configs": [{"targets": [f"127.0.0.1:{port}"]}]}
                ],
            }
        )
    )
    checked = subprocess.run(
        ["promtool", "check", "config", str(configuration)], capture_output=True, check=False
    )
    assert checked.returncode == 0, checked.stdout
    process = subprocess.Popen(
        [
            *("prometheus", f"--config.file={configuration}"),
            *(f"--storage.tsdb.path={tmp_path}/data", f"--web.listen-address=127.0.0.1:{web}"),
        ],
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        value = _query(web, "safeclaw_journal_records")
        assert value > 0
        # a scrape that takes too long, on a busy machine, is followed by one that does not
        assert _query(web, 'up{job="safeclaw"} == 1') == 1
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()


def _query(port: int, what: str) -> float:
    """Ask Prometheus until it has scraped."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        done = subprocess.run(
            [
                *("curl", "-sS", "--retry", "60", "--retry-delay", "1", "--retry-all-errors"),
                *("--get", "--data-urlencode", f"query={what}"),
                f"http://127.0.0.1:{port}/api/v1/query",
            ],
            capture_output=True, text=True, check=True,
        )  # fmt: skip
        found = json.loads(done.stdout)["data"]["result"]
        if found:
            return float(found[0]["value"][1])
    raise AssertionError(f"Prometheus has no {what}")
