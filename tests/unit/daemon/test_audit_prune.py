"""Who prunes by hand keeps what the operator has said that is kept."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from safeclaw.daemon.cli.audit_keys import keeping_of, writing
from safeclaw.daemon.journal import files, read
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.report import Status
from safeclaw.daemon.journal.verifier import verify
from safeclaw.errors import SafeclawError
from tests.journals import DAY, Host, decision
from tests.unit.daemon.auditing import run

#: How long ago, in days, the segments were begun.
AGES = (400, 300, 200, 130, 120)


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    state = tmp_path / "state"
    state.mkdir(mode=0o700)
    with pytest.MonkeyPatch.context() as clocks:
        host = Host(clocks)
        for number, age in enumerate(AGES):
            host.wall_ns = time.time_ns() - age * DAY
            host.reboot()
            with host.open(state / "journal", Keeping(retention_days=36_500)) as journal:
                journal.append(decision(number))
    return state


@pytest.fixture(name="config")
def _config(tmp_path: Path) -> Path:
    (tmp_path / "safeclawd.yaml").write_text("journal: {retention_days: 250}\n")
    return tmp_path


def left(state: Path) -> int:
    assert verify(state / "journal").status is Status.INTACT
    return len(files.segments(state / "journal"))


def pruned(state: Path) -> list[dict[str, object]]:
    return [record.detail or {} for record in read(state / "journal", Filter(type="prune"))]


@pytest.mark.parametrize("how", ["--config", "the user's own"])
def test_what_is_configured_is_kept(
    state: Path, config: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    before = left(state)
    words = ["prune", "--state", str(state)]
    if how == "--config":
        words += ["--config", str(config)]
    else:
        (config / "safeclaw").mkdir()
        (config / "safeclawd.yaml").rename(config / "safeclaw" / "safeclawd.yaml")
        monkeypatch.setenv("XDG_CONFIG_HOME", str(config))
    result = run(*words)
    assert result.exit_code == 0
    assert result.stdout == "1 segments pruned: what was older than 250 days\n"
    assert left(state) == before - 1
    assert [detail["retention_days"] for detail in pruned(state)] == [250]


def test_less_than_is_configured_needs_an_override(state: Path, config: Path) -> None:
    before = left(state)
    words = ("prune", "--state", str(state), "--config", str(config), "--retention", "125")
    result = run(*words)
    assert isinstance(result.exception, SafeclawError)
    line, hint = result.exception.diagnostics()
    assert "125 days is under the 250 that are configured" in line
    assert "--override" in hint
    assert left(state) == before
    assert run(*words, "--override").exit_code == 0
    assert left(state) == before - 3
    (detail,) = pruned(state)
    assert (detail["retention_days"], detail["override"]) == (125, True)


def test_settings_that_cannot_be_read_prune_nothing(state: Path, config: Path) -> None:
    before = left(state)
    (config / "safeclawd.yaml").write_text("journal: {retention_days: 5}\n")
    result = run("prune", "--state", str(state), "--config", str(config))
    assert isinstance(result.exception, SafeclawError)
    assert "safeclawd.yaml:1: " in result.exception.message
    assert left(state) == before


def test_who_only_appends_does_not_prune_what_is_to_be_kept(state: Path, config: Path) -> None:
    before = left(state)
    # The last segment is days old: a record begins the next one, and that prunes.
    with writing(state, keeping_of(state, str(config))) as journal:
        journal.append(decision(9))
        journal.commit()
    assert left(state) == before
    assert [detail["retention_days"] for detail in pruned(state)] == [250]
