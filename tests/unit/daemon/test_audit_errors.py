"""Whatever an auditor gets wrong is answered by one clear line and a hint."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from safeclaw.daemon.cli.main import main
from safeclaw.daemon.journal import Journal, RecordType, files
from safeclaw.daemon.journal.record import Entry
from safeclaw.errors import SafeclawError
from tests.unit.daemon.auditing import run

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


def test_what_lies_beside_the_chain_is_no_anchor(state: Path) -> None:
    checkpoint, key = state / "journal" / files.CHECKPOINT, state / "keys" / files.PUBLIC_KEY
    with TemporaryDirectory() as elsewhere:
        link, copy = Path(elsewhere, "link"), Path(elsewhere, "copy")
        link.symlink_to(checkpoint)
        copy.write_bytes(checkpoint.read_bytes())
        for option, path in (
            ("--checkpoint", checkpoint), ("--checkpoint", link), ("--public-key", key),
        ):  # fmt: skip
            result = run("verify", option, str(path), "--state", str(state))
            assert isinstance(result.exception, SafeclawError)
            assert result.exception.exit_status == 2
            line, hint = result.exception.diagnostics()
            assert "lies beside the chain" in line
            assert "kept where this journal's owner cannot write" in hint
        result = run("verify", "--checkpoint", str(copy), "--state", str(state))
        assert ": intact\n" in result.stdout


def test_a_package_says_what_it_cannot_exclude(state: Path, tmp_path: Path) -> None:
    output = tmp_path / "evidence.zip"
    made = run("evidence", "--output", str(output), "--state", str(state))
    assert made.exit_code == 0, made.output
    assert "internally consistent" in made.stdout
    assert "cannot exclude: that whoever owns the files and the key rewrote" in made.stdout
    missing = run("evidence", "verify", str(tmp_path / "none.zip"))
    assert missing.exit_code == 3
    assert missing.stdout.count("none.zip") == 1


def test_the_wrong_directory_is_told_which_is_right(state: Path) -> None:
    result = run("verify", "--state", str(state / "journal"))
    assert result.exit_code == 3
    assert "the directory that holds journal/ and keys/" in result.stderr


def test_a_chain_in_use_says_so(state: Path) -> None:
    with Journal.open(state / "journal"):
        for words in (("keys", "roll"), ("prune",)):
            result = run(*words, "--state", str(state))
            assert isinstance(result.exception, SafeclawError)
            line, hint = result.exception.diagnostics()
            assert "a broker is writing this chain" in line
            assert "stop safeclawd" in hint


@pytest.mark.parametrize(
    ("words", "said", "help_of"),
    [
        (("nonsense",), "No such command 'nonsense'", "audit"),
        (
            ("export", "--format", "xml"),
            "'xml' is not one of 'json', 'jsonl', 'csv'",
            "audit export",
        ),
        (("export", "--nonsense"), "No such option", "audit export"),
        (("show", "--type", "\x1b[2Jx"), "is not one of 'genesis'", "audit show"),
        (("verify", "--jobs", "0"), "0 is not in the range", "audit verify"),
        (("evidence",), "Missing option '--output'", "audit evidence make"),
        (("evidence", "verify"), "Missing argument 'FILE'", "audit evidence verify"),
        (("sample",), "Missing option '--seed'", "audit sample"),
        (("prune", "--retention", "-1"), "-1 is not in the range", "audit prune"),
        (("prune", "--retention", "5000000"), "5000000 is not in the range", "audit prune"),
        (("show", "--last", "9" * 30), "9 is not in the range", "audit show"),
        (("tail", "--last", "9" * 30), "9 is not in the range", "audit tail"),
        (("reveal", "x"), "'x' is not a valid integer", "audit reveal"),
        (("witness", "push"), "Missing argument 'URL'", "audit witness push"),
        (("keys", "roll", "more"), "unexpected extra argument", "audit keys roll"),
    ],
)
def test_what_is_misspelt_is_one_line_and_where_the_help_is(
    capfd: pytest.CaptureFixture[str], words: tuple[str, ...], said: str, help_of: str
) -> None:
    assert main(["audit", *words]) == 2
    out, err = capfd.readouterr()
    line, hint = err.splitlines()
    assert out == ""
    assert line.startswith("safeclaw: ")
    assert said in line
    assert "\x1b" not in err
    assert hint == f"hint: safeclaw {help_of} --help"


def test_a_package_without_the_key_is_not_begun(state: Path, tmp_path: Path) -> None:
    (state / "keys" / files.PRIVATE_KEY).unlink()
    output = tmp_path / "evidence.zip"
    result = run("evidence", "--output", str(output), "--state", str(state))
    assert isinstance(result.exception, SafeclawError)
    line, hint = result.exception.diagnostics()
    assert "journal.key: No such file" in line
    assert "run this as its owner" in hint
    assert not output.exists()


def test_an_empty_period_says_so(state: Path) -> None:
    summary = run("summary", *NOTHING, "--state", str(state))
    assert summary.exit_code == 0
    assert summary.stdout == "no records in this period\n"
    sample = run("sample", "--seed", "x", *NOTHING, "--state", str(state))
    export = run("export", *NOTHING, "--state", str(state))
    assert export.stdout == ""
    assert "exported 0 of the journal's 3 records, from 2020-01-01 00:00:00" in export.stderr
    for result in (summary, sample):
        assert "hint: widen --since and --until" in result.stderr
    output = state / "evidence.zip"
    evidence = run("evidence", *NOTHING, "--output", str(output), "--state", str(state))
    assert "no records in this period" in evidence.stderr


@pytest.mark.parametrize(
    "words",
    [
        ("agent", "rotate-key", "demo", "--overlap", "9" * 5000 + "d"),
        ("policy", "suggest", "--since", "0001-01-01T00:00+14:00"),
    ],
)
def test_a_time_beyond_all_times_is_no_time(
    capfd: pytest.CaptureFixture[str], state: Path, words: tuple[str, ...]
) -> None:
    more = ("--state", str(state)) if words[0] == "policy" else ()
    assert main([*words, *more]) == 2
    assert len(capfd.readouterr().err.splitlines()) == 2
