"""The kill switch on a booted Debian: many agents at work, gone at once, and down until resumed."""

from __future__ import annotations

import contextlib
import os
import re
import select
from collections.abc import Generator
from pathlib import Path

import psutil
import pytest

from tests.deploy.booted import Booted
from tests.deploy.conftest import Boot
from tests.deploy.deployed import DEMO, Deployed

#: Two processes, each of which makes one file after the other; both hold the FIFO.
STEPS = """\
import itertools, os, time
said = os.open("alive", os.O_WRONLY)
os.fork()
for number in itertools.count():
    open(f"made-{os.getpid()}-{number}", "x").close()
    os.write(said, b".")
    time.sleep(0.02)
"""
#: Registers and sets up the agents whose names it is given: one shell, since there are many.
SET_UP = """\
umask 077
for name; do
    home=/var/lib/safeclaw-agents/$name
    systemctl start safeclaw-agent-user@$name
    safeclaw agent add $name --policy demo --owner olga --environment test --user _agent-$name \\
        >/etc/safeclaw/keys/$name 2>/dev/null
    echo 'COMMAND=/usr/bin/python3 steps.py' >/etc/safeclaw/agents/$name.env
    install -d -o _agent-$name -m 0700 $home
    cp /root/steps.py $home/ && mkfifo $home/alive && chown _agent-$name $home/*
done
"""
_PATIENCE = 120.0
_SLICE = "safeclaw-agents.slice"
_KILLED = "the supervisor has gone"
#: systemd's own (SD_MESSAGE_UNIT_FAILURE_RESULT).
_UNIT_FAILED = "d9b373ed55a64feb8242e02dbe79a49c"


class Fleet:
    """Agents at work as units, and how it is known that each of their processes is gone."""

    def __init__(self, machine: Booted, count: int) -> None:
        self.machine = machine
        self.names = [f"worker-{number}" for number in range(count)]
        self.units = [f"safeclaw-agent@{name}.service" for name in self.names]
        machine.write("/root/steps.py", STEPS)
        machine.run("sh", "-euc", SET_UP, "sh", *self.names)
        self._fifos = {
            name: os.open(self._home(name) / "alive", os.O_RDONLY | os.O_NONBLOCK)
            for name in self.names
        }

    def _home(self, name: str) -> Path:
        return self.machine.root / "var/lib/safeclaw-agents" / name

    def close(self) -> None:
        """Let go of this end of the FIFOs."""
        for fifo in self._fifos.values():
            os.close(fifo)

    def start(self) -> None:
        """Start every unit; return when each agent has made some steps."""
        self.machine.systemctl("start", *self.units)
        for fifo in self._fifos.values():
            steps = 0
            while steps < 4:
                assert select.select([fifo], [], [], _PATIENCE)[0], "an agent makes no step"
                steps += len(_read(fifo))

    def pidfds(self) -> list[int]:
        """Return a descriptor of each process in the agents' slice: supervisors, agents, all."""
        found: list[int] = []
        for process in psutil.Process(self.machine.leader).children(recursive=True):
            with contextlib.suppress(OSError):
                if _SLICE in Path(f"/proc/{process.pid}/cgroup").read_text():
                    found.append(os.pidfd_open(process.pid))
        # a supervisor, the first of its PID namespace, and the two that work
        assert len(found) >= 4 * len(self.names)
        return found

    def held(self) -> list[str]:
        """Return whose FIFO some process still holds, at this moment."""
        return [name for name, fifo in self._fifos.items() if _held(fifo)]

    def made(self) -> set[str]:
        """Return the files that the agents have made, as the machine names them."""
        homes = self.machine.root / "var/lib/safeclaw-agents"
        return {f"/{path.relative_to(self.machine.root)}" for path in homes.glob("*/made-*")}


def _read(fifo: int) -> bytes:
    try:
        return os.read(fifo, 1 << 20)
    except BlockingIOError:
        return b""


def _held(fifo: int) -> bool:
    """Whether somebody holds the writing end, whatever is still in the pipe."""
    try:
        while os.read(fifo, 1 << 20):
            pass
    except BlockingIOError:
        return True
    return False


def ended(pidfds: list[int]) -> None:
    """Wait until every process has ended (pidfd_open(2): readable then)."""
    poller = select.poll()
    for pidfd in pidfds:
        poller.register(pidfd, select.POLLIN)
    left = set(pidfds)
    while left:
        ready = poller.poll(_PATIENCE * 1000)
        assert ready, f"{len(left)} processes are still there"
        for pidfd, _ in ready:
            poller.unregister(pidfd)
            os.close(pidfd)
            left.discard(pidfd)


@contextlib.contextmanager
def at_work(machine: Booted, count: int) -> Generator[Fleet]:
    """Have so many agents at work."""
    fleet = Fleet(machine, count)
    try:
        fleet.start()
        yield fleet
    finally:
        fleet.close()


@pytest.fixture(name="deployed")
def _deployed(boot: Boot, installed: Path) -> Deployed:
    """A machine of the test's own: it is switched off."""
    found = Deployed(boot(installed))
    found.policy("demo", DEMO)
    return found


def stopped_all_and_stayed_down(deployed: Deployed, count: int) -> None:
    machine = deployed.machine
    with at_work(machine, count) as fleet:
        machine.systemctl("enable", *fleet.units)
        pidfds = fleet.pidfds()
        said = machine.run("safeclaw", "kill", "--all", "--why", "drill").stdout
        # At this moment, and not some time later:
        assert fleet.held() == []
        made = fleet.made()
        assert said.startswith(f"every agent: {count} sessions stopped; down until safeclaw resume")
        ended(pidfds)

        # The record: who stopped whom, and each session's end; nothing is allowed after that.
        records = deployed.records()
        (order,) = [one for one in records if one["type"] == "kill"]
        assert (order["reason"], order["subject"]["uid"]) == ("drill", 0)
        begun = {one["session"] for one in records if one["type"] == "session_start"}
        assert len(begun) == count
        assert set(order["detail"]["sessions"]) == begun
        ends = {one["session"]: one for one in records if one["type"] == "session_end"}
        assert ends.keys() == begun
        # whose supervisor does not come to it within a second, it is killed by the broker itself
        for one in ends.values():
            assert one["reason"] in ("kill switch: stopped by root: drill", _KILLED)
        for one in records:
            if one.get("decision") == "allow":
                assert one["seq"] < ends[one["session"]]["seq"]
        recorded = {
            one["target"]["path"]
            for one in records
            if one.get("action") == "file.write.create" and one["decision"] == "allow"
        }
        assert made
        assert made <= recorded

        # A start is refused, in one line and a hint, and recorded.
        head = records[-1]["seq"]
        machine.systemctl("start", "--wait", fleet.units[0], check=False)
        refused_as_killed(deployed, fleet.names[0], head)

        # And so it is after the machine was switched off.
        machine.reboot()
        boot_id = machine.read("/proc/sys/kernel/random/boot_id").strip().replace("-", "")
        this = f"_BOOT_ID={boot_id}"
        with machine.watch(f"MESSAGE_ID={_UNIT_FAILED}", this, past=True) as failed:
            left = set(fleet.units)
            while left:
                left.discard(failed()["UNIT"])
        for name in fleet.names:
            refused_as_killed(deployed, name, head)
        assert not deployed.records("--type", "session_start")[count:]
        assert fleet.made() == made
        status = machine.run("safeclaw", "status").stdout
        assert re.search(r"^kill switch: every agent is down since \S+: drill$", status, re.M)

        machine.run("safeclaw", "resume", "--all", "--why", "drill over")
        machine.systemctl("start", fleet.units[0])
        deployed.works(fleet.names[0])
        deployed.verify("--journald")
        machine.run("safeclaw", "kill", "--all")


def refused_as_killed(deployed: Deployed, name: str, head: int) -> None:
    """The unit has failed with 125, its log says why, and so does the chain after ``head``."""
    machine, unit = deployed.machine, f"safeclaw-agent@{name}.service"
    state = machine.show(unit, "ActiveState", "ExecMainStatus")
    assert state == {"ActiveState": "failed", "ExecMainStatus": "125"}
    said = [str(entry["MESSAGE"]) for entry in machine.journal("--boot", f"--unit={unit}")]
    at = [line.startswith("safeclaw: the kill switch is on: every agent was") for line in said]
    assert at.count(True) == 1, said
    assert said[at.index(True)].endswith(": drill")
    assert said[at.index(True) + 1] == "hint: safeclaw resume --all"
    refusals = [
        one
        for one in deployed.records("--agent", name, "--action", "session.start")
        if one["seq"] > head
    ]
    assert refusals
    for one in refusals:
        assert (one["rule"], one["decision"]) == ("access-control", "deny")
        assert "the kill switch is on" in one["reason"]


def test_twelve_agents_are_stopped_and_stay_down(deployed: Deployed) -> None:
    stopped_all_and_stayed_down(deployed, 12)


@pytest.mark.soak
def test_fifty_agents_are_stopped_and_stay_down(deployed: Deployed) -> None:
    stopped_all_and_stayed_down(deployed, 50)


@pytest.mark.parametrize("broker", ["stopped", "wedged"])
def test_agents_are_stopped_without_their_broker(deployed: Deployed, broker: str) -> None:
    """As docs/operations.md says: systemd alone ends them."""
    machine = deployed.machine
    with at_work(machine, 3) as fleet:
        pidfds = fleet.pidfds()
        if broker == "stopped":
            machine.systemctl("stop", "safeclawd.service", "safeclawd.socket")
        else:
            machine.systemctl("kill", "--signal=STOP", "safeclawd.service")
        machine.systemctl("kill", "--signal=KILL", _SLICE)
        machine.systemctl("stop", _SLICE)
        assert fleet.held() == []
        ended(pidfds)
        made = fleet.made()
        for unit in fleet.units:
            assert machine.show(unit, "ActiveState")["ActiveState"] in ("inactive", "failed")
        machine.systemctl("kill", "--signal=KILL", "safeclawd.service", check=False)
        machine.systemctl("start", "safeclawd.socket", "safeclawd.service")
        assert fleet.made() == made
        # The chain says of each session that its supervisor has gone.
        deployed.verify()


def test_the_switch_works_where_no_broker_answers(deployed: Deployed) -> None:
    machine = deployed.machine
    with at_work(machine, 2) as fleet:
        pidfds = fleet.pidfds()
        machine.systemctl("kill", "--signal=STOP", "safeclawd.service")
        machine.run("rm", "/run/safeclaw/broker.sock")
        done = machine.run("safeclaw", "kill", "--all", "--why", "drill")
        assert "no broker answers at /run/safeclaw/broker.sock" in done.stderr
        assert done.stdout.startswith("every agent: 2 supervisors killed without the broker;")
        ended(pidfds)
        assert fleet.held() == []
        # The next broker finds the order.
        machine.systemctl("kill", "--signal=KILL", "safeclawd.service")
        machine.systemctl("restart", "safeclawd.socket", "safeclawd.service")
        head = deployed.records()[-1]["seq"]
        machine.systemctl("start", "--wait", fleet.units[0], check=False)
        refused_as_killed(deployed, fleet.names[0], head)
        machine.run("safeclaw", "resume", "--all")
        machine.systemctl("start", fleet.units[0])
        deployed.works(fleet.names[0])
        machine.run("safeclaw", "kill", "--all")
