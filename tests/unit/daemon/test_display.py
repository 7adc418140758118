"""What is said of a denial on the terminal."""

from __future__ import annotations

from safeclaw.daemon.display import denial_line
from safeclaw.policies.model import Attempt, Decision, ProgramTarget, Verdict

DENIED = Verdict(Decision.DENY, "default-deny", "no rule allows this")


def line(*argv: str) -> str:
    return denial_line(Attempt("shell.execute", ProgramTarget("/usr/bin/git", argv)), DENIED, "/ws")


def test_what_would_allow_it_is_said() -> None:
    assert "; to allow: " in line("git", "push")


def test_nothing_is_proposed_for_what_is_too_long_to_be_shown() -> None:
    shown = line("git", *["a" * 131_000] * 45)
    assert "to allow" not in shown
    assert len(shown) < 1000
