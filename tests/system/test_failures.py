"""What happens to an agent at work when a part of safeclaw dies, stops, or cannot write.

Whatever it did is in the journal: each of its files has a record.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.system.conftest import Person
from tests.system.work import at_work, broker_of, gone, recorded, supervisor_killed, whole


def test_a_killed_broker_stops_the_agent_and_loses_no_record(person: Person) -> None:
    with at_work(person) as work:
        with broker_of(person) as broker:
            signal.pidfd_send_signal(broker, signal.SIGKILL)
            ended = work.ended()
        work.over()
    assert ended.returncode == 128 + signal.SIGKILL
    assert "the broker has gone; nothing is allowed any more, the agent is stopped" in ended.stderr
    assert "hint: the broker is pid " in ended.stderr
    assert "Traceback" not in ended.stderr
    # the fresh broker has what the lost one had not written
    assert "nobody confirms" not in ended.stderr, ended.stderr
    made = work.made()
    assert len(made) >= 20
    assert made <= recorded(person)
    (end,) = person.records("--type", "session_end")
    assert "the broker has gone" in str(end["reason"])
    assert not person.records("--type", "gap")
    whole(person)
    assert work.made() == made


def test_strict_assurance_survives_the_death_of_broker_and_supervisor(person: Person) -> None:
    with at_work(person, assurance="strict") as work, broker_of(person) as broker:
        work.kill_both(broker)
        work.ended()
        work.over()
    made = work.made()
    assert len(made) >= 20
    # The next start sets a torn tail aside, where there is one.
    assert person.safeclaw("run", "--", "true").returncode == 0
    assert made <= recorded(person)
    whole(person)


def test_a_session_whose_broker_and_supervisor_died_is_closed_by_the_next_start(
    person: Person,
) -> None:
    with at_work(person) as work, broker_of(person) as broker:
        work.kill_both(broker)
        work.ended()
        work.over()
    assert not person.records("--type", "session_end")
    assert person.safeclaw("run", "--", "true").returncode == 0
    # A torn tail has a record of the same type, which is of no session.
    (found,) = [r for r in person.records("--type", "recovery") if r.get("session")]
    assert "the broker and the supervisor of this session died" in str(found["reason"])
    first, second = person.records("--type", "session_end")
    assert first["session"] == found["session"] != second["session"]
    whole(person)
    assert len([r for r in person.records("--type", "recovery") if r.get("session")]) == 1


def test_a_stopped_broker_stops_the_agent_after_the_grace_time(person: Person) -> None:
    with at_work(person, "--grace", "2") as work, broker_of(person) as broker:
        signal.pidfd_send_signal(broker, signal.SIGSTOP)
        ended = work.ended()
        work.over()
        made = work.made()
        assert ended.returncode == 128 + signal.SIGKILL
        assert "the broker has " in ended.stderr
        assert "nothing is allowed any more, the agent is stopped" in ended.stderr
        assert re.search(r"nobody confirms the last \d+ records", ended.stderr)
        assert "Traceback" not in ended.stderr
        # What a stopped broker had not read yet was handed over all the same.
        signal.pidfd_send_signal(broker, signal.SIGCONT)
        gone(broker)
    assert made <= recorded(person)
    whole(person)
    assert work.made() == made


def test_a_killed_supervisor_takes_every_process_of_the_agent_along(person: Person) -> None:
    supervisor_killed(person)


# --- a disk that fills up


class SmallDisk:
    """A tmpfs of its own over a person's state directory, seen by that person only."""

    def __init__(self, person: Person, size: str) -> None:
        self._options = f"uid={person.uid},mode=700"
        self._at = person.state
        script = (
            f"mount -t tmpfs -o size={size},{self._options} tmpfs {self._at} && echo ready && cat"
        )
        self._holder = subprocess.Popen(
            ["unshare", "--mount", "--propagation", "private", "sh", "-c", script],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._holder.stdout is not None
        assert self._holder.stdout.readline() == b"ready\n"
        self._enter = f"--mount=/proc/{self._holder.pid}/ns/mnt"
        person.within = ("nsenter", self._enter, f"--wd={person.workspace}")
        #: The same directory, seen from outside.
        self.path = Path(f"/proc/{self._holder.pid}/root{self._at}")

    def grow(self, size: str) -> None:
        command = f"mount -o remount,size={size},{self._options} {self._at}"
        subprocess.run(["nsenter", self._enter, *command.split()], check=True)

    def close(self) -> None:
        self._holder.communicate()


@pytest.fixture(name="disk")
def _disk(person: Person) -> Iterator[SmallDisk]:
    if os.geteuid() != 0:
        pytest.skip("not root: cannot mount a small disk")
    disk = SmallDisk(person, "512k")
    yield disk
    person.within = ()
    disk.close()


@pytest.mark.parametrize("assurance", ["strict", "pipelined"])
def test_a_disk_that_fills_up_stops_the_agent(
    person: Person, disk: SmallDisk, assurance: str
) -> None:
    with at_work(person, assurance=assurance) as work:
        work.over()
        ended = work.ended()
    made = work.made()
    assert ended.returncode == 128 + signal.SIGKILL
    assert "the journal cannot be written: " in ended.stderr
    assert "No space left on device" in ended.stderr
    assert "nothing is allowed any more, the agent is stopped" in ended.stderr
    assert "Traceback" not in ended.stderr
    # With no room nothing starts either, and says why.
    full = person.safeclaw("run", "--", "sh", "-c", "echo ran > ran")
    assert full.returncode == 125, full.stderr
    assert "No space left on device" in full.stderr
    assert not (person.workspace / "ran").exists()

    disk.grow("16m")
    assert person.safeclaw("run", "--", "true").returncode == 0
    lost = made - recorded(person)
    if assurance == "strict":
        assert not lost
    else:
        told = re.search(r"nobody confirms the last (\d+) records", ended.stderr)
        assert len(lost) <= (int(told[1]) if told else 0)
    whole(person)
    assert work.made() == made


def test_a_disk_that_is_full_before_the_start_is_said(person: Person, disk: SmallDisk) -> None:
    with open(disk.path / "filler", "wb", buffering=0) as filler, contextlib.suppress(OSError):
        while True:
            filler.write(bytes(4096))
    refused = person.safeclaw("run", "--", "sh", "-c", "echo ran > ran")
    assert refused.returncode == 125
    assert "No space left on device" in refused.stderr
    assert "Traceback" not in refused.stderr
    assert not (person.workspace / "ran").exists()

    (disk.path / "filler").unlink()
    ran = person.safeclaw("run", "--", "sh", "-c", "echo ran > ran")
    assert ran.returncode == 0, ran.stderr
    assert (person.workspace / "ran").exists()
    report = json.loads(person.safeclaw("audit", "verify", "--json").stdout)
    assert report["finding"] is None
