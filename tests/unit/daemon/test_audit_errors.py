"""Whatever an auditor gets wrong is answered by one clear line and a hint."""

from __future__ import annotations

from pathlib import Path

import pytest

from safeclaw.daemon.journal import Journal, RecordType
from safeclaw.daemon.journal.record import Entry
from safeclaw.errors import SafeclawError
from tests.unit.daemon.test_audit_export import run

NOTHING = ("--since", "2020-01-01", "--until", "2020-01-02")


@pytest.fixture(name="state")
def _state(tmp_path: Path) -> Path:
    with Journal.open(tmp_path / "journal") as journal:
        journal.append(Entry(type=RecordType.KILL))
    return tmp_path


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("export", "--since", "soon"), "'soon' says no time"),
        (("export", "--since", "2026-13-45"), "'2026-13-45' says no time"),
        (("summary", "--since", "today", "--until", "2020-01-01"), "is not after"),
        (("verify", "--public-key", "nowhere"), "nowhere: No such file"),
        (("verify", "--checkpoint", "nowhere"), "nowhere: No such file"),
        (("verify", "--witness-key", "nowhere"), "nowhere: No such file"),
        (("verify", "--witness", "http://127.0.0.1:1"), "--witness needs --witness-key"),
        (("reveal", "1", "--why", "because"), "pseudonym.key: No such file"),
    ],
)
def test_what_is_wrong_is_one_line_and_a_hint(
    state: Path, words: tuple[str, ...], said: str
) -> None:
    result = run(*words, "--state", str(state))
    assert isinstance(result.exception, SafeclawError), result.output
    line, hint = result.exception.diagnostics()
    assert said in line
    assert hint.startswith("hint: ")


def test_a_chain_in_use_says_so(state: Path) -> None:
    with Journal.open(state / "journal"):
        for words in (("keys", "roll"), ("prune",)):
            result = run(*words, "--state", str(state))
            assert isinstance(result.exception, SafeclawError)
            line, hint = result.exception.diagnostics()
            assert "a broker is writing this chain" in line
            assert "stop safeclawd" in hint


def test_an_unknown_format_names_those_there_are(state: Path) -> None:
    result = run("export", "--format", "xml", "--state", str(state))
    assert result.exit_code == 2
    assert "'ocsf'" in result.output


def test_an_empty_period_says_so(state: Path) -> None:
    summary = run("summary", *NOTHING, "--state", str(state))
    assert summary.exit_code == 0
    assert summary.stdout == "no records in this period\n"
    sample = run("sample", "--seed", "x", *NOTHING, "--state", str(state))
    export = run("export", *NOTHING, "--state", str(state))
    assert export.stdout == ""
    assert "exported 0 records" in export.stderr
    assert "left out 3" in export.stderr
    for result in (summary, sample):
        assert "hint: widen --since and --until" in result.stderr
