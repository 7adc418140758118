"""Histories without an attacker: whatever a host goes through, verification finds nothing."""

from __future__ import annotations

import os
import random
import shutil
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, keys
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.store import Batch
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from tests.journals import DAY, Host, decision, segment
from tests.standalone import standalone


def crash(journal: Journal, chance: random.Random) -> None:
    """Leave the journal as kill -9 does: with a piece, or nothing, of what was not committed."""
    directory = journal.directory
    inside = vars(journal)  # a process that dies closes nothing and says nothing
    inside["_store"].close()
    os.close(inside["_lock_fd"])
    batches: list[Batch] = inside["_tip"].take()
    for batch in batches[: chance.randrange(len(batches) + 1)]:
        data = b"".join(line + b"\n" for line in batch.lines)
        last = batch is batches[-1] or chance.random() < 0.5
        with segment(directory, batch.segment).open("ab") as stream:
            stream.write(data[: chance.randrange(len(data) + 1)] if last else data)
        if last:
            return


def one_history(place: Path, host: Host, chance: random.Random) -> list[str]:
    """Let a host live for a while; return what happened to it."""
    directory = place / "journal"
    told: list[str] = []
    journal = host.open(directory)
    journal.upkeep.segment_bytes = chance.choice((3000, 20_000, 1 << 20))
    for _ in range(chance.randrange(5, 30)):
        event = chance.choice(
            ["work"] * 6
            + ["quiet", "step", "restart", "reboot", "crash", "roll", "prune", "upgrade", "slew"]
        )
        told.append(event)
        match event:
            case "work":
                for number in range(chance.randrange(1, 40)):
                    journal.append(decision(number))
                    host.passes(chance.randrange(10**6, 10**9))
                if chance.random() < 0.7:
                    journal.commit()
            case "quiet":
                for _ in range(chance.randrange(1, 5)):
                    host.passes(chance.randrange(10**9, 2 * DAY))
                    journal.tick()
                    journal.commit()
            case "step":
                host.step(chance.choice((-1, 1)) * chance.randrange(10**6, 400 * 10**9))
            case "slew":
                # A clock that is being corrected runs up to 0.05 % fast or slow.
                for _ in range(20):
                    host.passes(60 * 10**9)
                    host.step(chance.choice((-1, 1)) * 30 * 10**6)
                    journal.append(decision(0))
            case "roll":
                journal.roll_key()
            case "prune":
                journal.commit()
                journal.prune(chance.choice((1, 3, 91)), override=True)
            case "restart" | "upgrade":
                journal.close()
                if event == "upgrade":
                    (directory / files.FRONTIER).unlink(missing_ok=True)
                host.passes(chance.randrange(10**6, 3 * DAY))
                host.step(chance.choice((0, 0, 30 * 10**9, -30 * 10**9)))
                journal = host.open(directory)
            case "reboot" | "crash":
                crash(journal, chance)
                if event == "reboot":
                    host.reboot()
                    host.step(chance.choice((0, -3600 * 10**9, 3600 * 10**9)))
                journal = host.open(directory)
            case _:
                raise AssertionError(event)
    journal.commit()
    journal.close()
    return told


def live(place: Path, host: Host, seed: int) -> set[str]:
    """Live one history, and hold both verifiers against what came of it."""
    told = one_history(place, host, random.Random(seed))
    directory = place / "journal"
    public_key = place / "keys" / files.PUBLIC_KEY
    report = verify(
        directory,
        public_key=keys.read_public_keys(public_key),
        checkpoints=[read_checkpoint(directory / files.CHECKPOINT)],
    )
    assert report.status is Status.INTACT, (seed, told, report.finding)
    assert report.headline == "intact"
    assert standalone(directory, public_key=public_key) == 0, seed
    return set(told)


def histories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seeds: range) -> None:
    events: set[str] = set()
    for seed in seeds:
        place = tmp_path / str(seed)
        events |= live(place, Host(monkeypatch), seed)
        shutil.rmtree(place)
    assert len(events) == 10, events


def test_no_history_without_an_attacker_is_a_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories(tmp_path, monkeypatch, range(10_000, 10_060))


@pytest.mark.soak
def test_none_of_a_thousand_histories_is_a_false_alarm(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    histories(tmp_path, monkeypatch, range(1000))
