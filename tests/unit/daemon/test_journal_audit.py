"""``safeclaw audit`` on a real journal."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safeclaw.daemon.journal import Entry, Journal, RecordType, files, read
from safeclaw.daemon.journal.filter import Filter
from safeclaw.errors import JournalError, UsageError
from tests.journals import DAY, Host
from tests.unit.daemon.auditing import run


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with Journal.open(tmp_path / "journal") as journal:
        for number, effect in enumerate(("allow", "deny", "deny")):
            journal.append(
                Entry(
                    type=RecordType.DECISION,
                    session="s-1",
                    agent=f"agent-{number}",
                    action="file.write.create" if number == 2 else "file.read",
                    target={"path": f"/work/{number}"},
                    decision=effect,
                    rule="default:1",
                    reason="because",
                )
            )
        journal.append(Entry(type=RecordType.SESSION_END, session="s-1", detail={"x": "\x1b[2J"}))
    return tmp_path


def test_show_filters(state: Path) -> None:
    def lines(*arguments: str) -> int:
        result = run("show", "--state", str(state), *arguments)
        assert result.exit_code == 0, result.output
        return len(result.stdout.splitlines())

    assert lines() == 6
    assert lines("--decision", "deny") == 2
    assert lines("--action", "file.write") == 1
    assert lines("--action", "file") == 3
    assert lines("--agent", "agent-1") == 1
    assert lines("--session", "s-1") == 4
    assert lines("--type", "genesis") == 1
    assert lines("--last", "2") == 2
    assert lines("--last", "0") == 0
    assert run("show", "--state", str(state), "--type", "nonsense").exit_code == 2
    assert lines("--since", "1 hour ago") == 6
    assert lines("--until", "yesterday") == 0


def test_show_takes_the_words_for_times_that_export_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    host = Host(monkeypatch)
    with host.open(tmp_path / "journal") as journal:
        for day in range(4):
            journal.append(Entry(type=RecordType.KILL, reason=f"day {day}"))
            host.passes(DAY)
    times = [str(record.ts) for record in read(tmp_path / "journal", Filter(type="kill"))]

    def reasons(*arguments: str) -> list[str]:
        result = run("show", "--state", str(tmp_path), "--type", "kill", "--json", *arguments)
        assert result.exit_code == 0, result.output
        return [json.loads(line)["reason"] for line in result.stdout.splitlines()]

    assert reasons("--since", times[1], "--until", times[3]) == ["day 1", "day 2"]
    assert reasons("--since", times[1], "--last", "1") == ["day 3"]
    assert reasons("--until", times[1]) == ["day 0"]
    for wrong in (("--since", "soon"), ("--since", times[2], "--until", times[1])):
        assert isinstance(run("show", "--state", str(tmp_path), *wrong).exception, UsageError)


def test_show_as_json_prints_the_lines_of_the_chain(state: Path) -> None:
    content = (state / "journal" / files.segment_name(1)).read_bytes()
    assert run("show", "--json", "--state", str(state)).stdout_bytes == content


def test_show_escapes_what_could_move_a_cursor(state: Path) -> None:
    result = run("show", "--state", str(state))
    assert "\x1b" not in result.stdout
    assert "\\x1b[2J" in result.stdout


def test_show_without_a_journal_is_an_error_with_a_hint(tmp_path: Path) -> None:
    result = run("show", "--state", str(tmp_path))
    assert isinstance(result.exception, JournalError)
    assert result.exception.hint


def test_verify_exit_statuses(state: Path, tmp_path: Path) -> None:
    good = run("verify", "--state", str(state))
    assert good.exit_code == 0, good.output
    assert "internally consistent" in good.stdout
    assert "cannot exclude" in good.stdout
    assert run("verify", "--state", str(tmp_path / "nowhere")).exit_code == 3
    path = state / "journal" / files.segment_name(1)
    path.write_bytes(path.read_bytes().replace(b"/work/1", b"/work/9"))
    bad = run("verify", "--state", str(state))
    assert bad.exit_code == 1
    assert "segment-000001.jsonl:4 (record 3)" in bad.stdout
    value = json.loads(run("verify", "--json", "--state", str(state)).stdout)
    assert value["status"] == "tampered"
    assert (value["finding"]["line"], value["finding"]["seq"]) == (4, 3)


def test_verify_against_what_was_kept_elsewhere(
    state: Path, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    shutil.copy(state / "keys" / files.PUBLIC_KEY, elsewhere / "key")
    shutil.copy(state / "journal" / files.CHECKPOINT, elsewhere / "checkpoint")
    anchors = (
        *("--public-key", str(elsewhere / "key")),
        *("--checkpoint", str(elsewhere / "checkpoint")),
    )
    result = run("verify", "--state", str(state), *anchors)
    assert result.exit_code == 0
    assert ": intact\n" in result.stdout
    result = run("verify", "--state", str(state), "--public-key", str(tmp_path / "none"))
    assert isinstance(result.exception, UsageError)
    assert result.exception.exit_status == 2


def test_tail_follows_across_segments(state: Path) -> None:
    code = (
        "import sys; from safeclaw.daemon.cli.audit import audit_group; audit_group(sys.argv[1:])"
    )
    command = [sys.executable, "-W", "ignore", "-c", code, "tail", "--state", str(state)]
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*command, "--last", "1"], stdout=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            assert "checkpoint of 5" in process.stdout.readline()
            with Journal.open(state / "journal") as journal:
                journal.upkeep.segment_bytes = 1
                journal.append(Entry(type=RecordType.KILL, reason="first"))
                journal.commit()
                assert "first" in process.stdout.readline()
                assert "rotate" in process.stdout.readline()
                assert "checkpoint" in process.stdout.readline()
                journal.append(Entry(type=RecordType.KILL, reason="second"))
                journal.commit()
                assert "second" in process.stdout.readline()
        finally:
            process.terminate()
