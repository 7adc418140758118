"""Whoever walks, one process or several: the verdict is the same, word for word."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import shutil
import signal
from collections.abc import Generator, Iterator
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, keys, read, stretch
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.report import Report, Status
from safeclaw.daemon.journal.stretch import Stretch
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from safeclaw.daemon.journal.walk import Walk
from tests.chain_attacks import ANCHORED, FOUND, Chain
from tests.journals import Host, decision
from tests.unit.daemon.test_journal_histories import one_history

VECTORS = Path(__file__).parents[3] / "docs" / "test-vectors"


@pytest.fixture(scope="module", name="processes")
def _processes() -> Iterator[Executor]:
    with ProcessPoolExecutor(2, multiprocessing.get_context("spawn")) as pool:
        yield pool


@pytest.fixture(autouse=True)
def _one_pool(processes: Executor, monkeypatch: pytest.MonkeyPatch) -> None:
    """Start the processes once, not for each verdict."""

    @contextlib.contextmanager
    def pool_of(_jobs: int) -> Generator[Executor]:
        yield processes

    monkeypatch.setattr(stretch, "pool_of", pool_of)


@pytest.fixture(name="taken")
def _taken(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Give whether each segment's rest was taken over."""
    taken: list[bool] = []

    def take_over(walk: Walk, found: Stretch | None) -> bool:
        taken.append(original(walk, found))
        return taken[-1]

    original = stretch.take_over
    monkeypatch.setattr(stretch, "take_over", take_over)
    return taken


@pytest.fixture(name="chain")
def _chain(tmp_path: Path) -> Chain:
    return Chain(tmp_path)


def both(directory: Path, state: Path | None = None, *kept: tuple[str, str]) -> Report:
    """Return the verdict, having seen that one process and several come to the same."""
    key = None
    if state is not None and (state / "keys" / files.PUBLIC_KEY).exists():
        key = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    alone = verify(directory, public_key=key, checkpoints=kept)
    assert verify(directory, public_key=key, checkpoints=kept, jobs=2) == alone
    return alone


@pytest.mark.parametrize("name", [*FOUND, *ANCHORED])
def test_an_attack_is_found_at_the_same_place(chain: Chain, name: str) -> None:
    attack = FOUND[name][0] if name in FOUND else ANCHORED[name][0]
    attack(chain)
    both(chain.directory)
    both(chain.directory, chain.directory.parent)
    both(chain.directory, chain.directory.parent, chain.kept)


@pytest.mark.parametrize("vector", sorted(path.parent.name for path in VECTORS.glob("*/journal")))
def test_a_published_chain_has_the_same_verdict(vector: str) -> None:
    kept = [read_checkpoint(path) for path in (VECTORS / vector).glob("checkpoint")]
    both(VECTORS / vector / "journal", None, *kept)


def test_a_history_without_an_attacker_has_the_same_verdict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, taken: list[bool]
) -> None:
    for seed in range(40):
        place = tmp_path / str(seed)
        one_history(place, Host(monkeypatch), random.Random(seed))
        kept = read_checkpoint(place / "journal" / files.CHECKPOINT)
        assert both(place / "journal", place, kept).status is Status.INTACT
        shutil.rmtree(place)
    assert sum(taken) > 100


@pytest.fixture(name="long")
def _long(tmp_path: Path) -> Path:
    with Journal.open(tmp_path / "journal") as journal:
        journal.upkeep.segment_bytes = 5000
        for number in range(80):
            journal.append(decision(number))
            if number % 9 == 0:
                journal.checkpoint()
    assert len(files.segments(tmp_path / "journal")) > 10
    return tmp_path / "journal"


def test_any_change_has_the_same_verdict(long: Path, tmp_path: Path) -> None:
    """Bytes, lines and files changed at random."""
    statuses: set[Status] = set()
    for seed in range(150):
        chance = random.Random(seed)
        place = tmp_path / str(seed)
        shutil.copytree(long, place)
        _, path = chance.choice(files.segments(place))
        data = path.read_bytes()
        lines = data.splitlines(keepends=True)
        at = chance.randrange(len(data))
        line = chance.randrange(len(lines))
        match chance.randrange(8):
            case 0:
                data = data[:at] + bytes([data[at] ^ (1 << chance.randrange(8))]) + data[at + 1 :]
            case 1:
                data = data[:at] + data[at + 1 :]
            case 2:
                data = data[:at]
            case 3:
                data = b"".join(lines[:line] + lines[line + 1 :])
            case 4:
                data = b"".join([*lines[:line], lines[line], *lines[line:]])
            case 5:
                data = b"".join(chance.sample(lines, len(lines)))
            case 6:
                data = b""
            case _:
                _, other = chance.choice(files.segments(place))
                data = other.read_bytes()
        path.write_bytes(data)
        statuses.add(both(place, tmp_path, read_checkpoint(long / files.CHECKPOINT)).status)
        shutil.rmtree(place)
    assert statuses >= {Status.INTACT, Status.TAMPERED}


def test_what_lies_between_is_walked_by_others_and_the_ends_here(
    long: Path, taken: list[bool]
) -> None:
    assert verify(long, jobs=2).status is Status.INTACT
    assert len(taken) == len(files.segments(long))
    assert taken == [False] + [True] * (len(taken) - 2) + [False]


def test_a_claim_within_a_segment_is_settled_where_it_stands(long: Path, taken: list[bool]) -> None:
    """A root that somebody else claims is known only to who walks there."""
    notes = [
        str((record.detail or {})["note"]) for record in read(long) if record.type == "checkpoint"
    ]
    kept = [(f"kept-{number}", note) for number, note in enumerate(notes)]
    verify(long, jobs=2)
    unclaimed = sum(taken)
    taken.clear()
    report = both(long, None, *kept)
    assert report.status is Status.INTACT
    assert len(report.anchors) == len(kept) > 2
    assert 0 < sum(taken) < unclaimed


def test_a_process_that_is_killed_costs_time_and_nothing_else(
    long: Path, taken: list[bool], monkeypatch: pytest.MonkeyPatch
) -> None:
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        pid = pool.submit(os.getpid).result()
        os.kill(pid, signal.SIGKILL)

        def pool_of(_jobs: int) -> contextlib.AbstractContextManager[Executor]:
            return contextlib.nullcontext(pool)

        monkeypatch.setattr(stretch, "pool_of", pool_of)
        report = verify(long, jobs=2)
    assert report == verify(long)
    assert not any(taken)


@pytest.mark.parametrize("jobs", [1, 2])
def test_progress_goes_up_to_the_end(long: Path, jobs: int) -> None:
    told: list[tuple[int, int]] = []
    verify(long, jobs=jobs, progress=lambda done, total: told.append((done, total)))
    total = sum(path.stat().st_size for _, path in files.segments(long))
    assert {of for _, of in told} == {total}
    assert told == sorted(told)
    assert told[-1] == (total, total)
