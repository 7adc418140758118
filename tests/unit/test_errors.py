"""Whatever is said against somebody says what to do as well."""

from __future__ import annotations

import ast
import errno
from pathlib import Path

import pytest

from safeclaw import errors
from safeclaw.daemon.cli.main import main

ROOT = Path(__file__).resolve().parents[2]
#: Those that reach a person as they are; a usage error gets its hint where it is shown.
TOLD = {
    "BrokerError",
    "BrokerGoneError",
    "CommandError",
    "JournalError",
    "JournalFaultError",
    "PolicyError",
    "SafeclawError",
    "WallError",
    "WitnessError",
}


def raised(path: Path) -> list[ast.Call]:
    """Return the calls by which a module makes errors that it raises."""
    tree = ast.parse(path.read_text())
    return [
        node.exc
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
    ]


def test_no_error_is_raised_without_a_hint() -> None:
    seen = 0
    bare: list[str] = []
    for part in ("daemon", "sandbox", "policies"):
        for path in (ROOT / part).rglob("*.py"):
            for call in raised(path):
                if isinstance(call.func, ast.Name) and call.func.id in TOLD:
                    seen += 1
                    if not any(word.arg == "hint" for word in call.keywords):
                        bare.append(f"{path.relative_to(ROOT)}:{call.lineno}")
    assert seen > 100
    assert bare == []


def test_a_failed_system_call_says_where_and_what_helps(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError) as absent:
        (tmp_path / "absent").read_bytes()
    error = errors.JournalError.of(absent.value, tmp_path / "absent")
    assert error.diagnostics() == [
        f"safeclaw: {tmp_path}/absent: No such file or directory",
        "hint: look for a slip in the path",
    ]
    full = errors.BrokerError.of(OSError(errno.ENOSPC, "No space left on device"), "/srv")
    assert full.hint is not None
    assert "make room" in full.hint
    nearer = errors.BrokerError.of(absent.value, "/srv", hint="give --state DIR")
    assert nearer.hint == "give --state DIR"


@pytest.mark.parametrize(
    ("words", "shown"),
    [
        (["policy", "explain", "file.read"], "safeclaw policy explain --help"),
        (["approvals", "approve", "3f9a1c", "--session", "--for", "3m"], "approvals approve"),
        (["audit", "show", "--last", "many"], "safeclaw audit show --help"),
        (["doctor", "--loudly"], "safeclaw doctor --help"),
    ],
)
def test_a_wrong_command_line_names_the_help_of_its_command(
    words: list[str], shown: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    said = capfd.readouterr().err.splitlines()
    assert said[0].startswith("safeclaw: ")
    assert said[-1].startswith("hint: ")
    assert shown in said[-1]
