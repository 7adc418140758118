"""The daemon's settings: every problem at once, each with its line."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.daemon import settings
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.peer import Groups
from safeclaw.errors import UsageError


def test_without_a_file_and_with_an_empty_one_the_defaults_hold(tmp_path: Path) -> None:
    path = tmp_path / "safeclawd.yaml"
    assert settings.read(path) == settings.Settings()
    path.write_text("# nothing yet\n")
    assert settings.read(path) == settings.Settings()


def test_what_is_set_holds(tmp_path: Path) -> None:
    path = tmp_path / "safeclawd.yaml"
    path.write_text(
        "grace: 5\napproval_hook: [/usr/bin/page, on-call]\ngroups: {run: agents}\n"
        "require_approval: true\n"
    )
    read = settings.read(path)
    assert read.require_approval
    assert (read.grace, read.approval_hook) == (5.0, ("/usr/bin/page", "on-call"))
    assert read.groups == Groups(run="agents")


def test_how_the_journal_is_kept_reaches_its_writer(tmp_path: Path) -> None:
    path = tmp_path / "safeclawd.yaml"
    path.write_text("journal: {segment_kib: 16, retention_days: 400, key_days: 1}\n")
    with Journal.open(tmp_path / "journal", keeping=settings.read(path).journal) as journal:
        assert journal.upkeep.segment_bytes == 16_384
        assert (journal.upkeep.retention_days, journal.upkeep.key_seconds) == (400, 86_400)


def test_less_than_auditors_look_back_is_no_retention(tmp_path: Path) -> None:
    path = tmp_path / "safeclawd.yaml"
    path.write_text("journal: {retention_days: 89}\n")
    with pytest.raises(UsageError, match=r"safeclawd.yaml:1: .*90.*retention_days"):
        settings.read(path)


def test_every_problem_is_said_with_its_line(tmp_path: Path) -> None:
    path = tmp_path / "safeclawd.yaml"
    path.write_text("grace: soon\nkey_rotation_days: 30\ngrase: 4\nmetrics_port: 70000\n")
    with pytest.raises(UsageError) as raised:
        settings.read(path)
    first, second, third = raised.value.message.splitlines()
    assert first.startswith(f"{path}:1: ")
    assert "grace" in first
    assert second.startswith(f"{path}:3: ")
    assert "grase" in second
    assert third.startswith(f"{path}:4: ")
    assert raised.value.hint


@pytest.mark.parametrize("text", ["- grace", "grace", "grace: [", "\x00", "a: 1\n b: 2"])
def test_what_is_no_mapping_is_one_clear_line(tmp_path: Path, text: str) -> None:
    path = tmp_path / "safeclawd.yaml"
    path.write_text(text)
    with pytest.raises(UsageError) as raised:
        settings.read(path)
    assert raised.value.message.startswith(str(path))
    assert "\n" not in raised.value.message
