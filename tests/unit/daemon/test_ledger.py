"""The journal as the broker's loop uses it."""

from __future__ import annotations

import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, journal, store
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.ledger import Ledger
from safeclaw.daemon.pseudonyms import Veils
from tests.journals import decision


@pytest.fixture(name="woken")
def _woken() -> Iterator[tuple[int, int]]:
    pipe = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    yield pipe
    for end in pipe:
        os.close(end)


def test_a_checkpoint_that_came_too_early_is_published_though_nothing_follows(
    tmp_path: Path, woken: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    poller = select.poll()
    poller.register(woken[0], select.POLLIN)
    ledger = Ledger(tmp_path / "journal", Keeping(), Veils(tmp_path / "keys"), woken[1])
    ledger.open()
    assert ledger.journal is not None
    monkeypatch.setattr(store, "PUBLISH_NS", 1 << 62)
    number = 0
    while ledger.journal.upkeep.mark is None:  # the last of them is followed by a checkpoint
        ledger.append(decision(number := number + 1))
    head = ledger.journal.head[0]
    ledger.commit(soon=True)
    while ledger.position.durable < head:
        assert poller.poll(60_000)
        os.read(woken[0], 100)
    for module in (store, journal):
        monkeypatch.setattr(module, "PUBLISH_NS", 0)
    assert ledger.journal.upkeep.mark is not None, "the commit has given it back"
    ledger.tick()
    assert poller.poll(60_000)
    assert int((tmp_path / "journal" / files.CHECKPOINT).read_text().splitlines()[1]) == head + 1
    ledger.close()
