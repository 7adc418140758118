"""What a person is told of a denial: a line that shows itself whole, and can be used."""

from __future__ import annotations

import os

from hypothesis import example, given
from hypothesis import strategies as st

from safeclaw.daemon.display import denial_line
from safeclaw.policies.compiled import Context, compile_policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import (
    Attempt,
    Decision,
    FileTarget,
    ProgramTarget,
    Verdict,
    is_seen,
)

DENIED = Verdict(Decision.DENY, "default-deny", "no rule allows this")
NAMES = (
    st.text(st.characters(codec="utf-8", exclude_characters="/\0"), min_size=1, max_size=12)
    | st.binary(min_size=1, max_size=12).map(os.fsdecode)
).filter(lambda name: name not in (".", "..") and "/" not in name and "\0" not in name)


def line(*argv: str) -> str:
    return denial_line(Attempt("shell.execute", ProgramTarget("/usr/bin/git", argv)), DENIED, "/ws")


def test_what_would_allow_it_is_said() -> None:
    assert "; to allow: " in line("git", "push")


def test_nothing_is_proposed_for_what_is_too_long_to_be_shown() -> None:
    shown = line("git", *["a" * 131_000] * 45)
    assert "to allow" not in shown
    assert len(shown) < 1000


@given(NAMES)
@example('say("it")')
@example("back\\slash")
@example("\u3164")
@example("\x1b[2J")
@example("*?[a]{b,c}")
def test_the_policy_line_of_a_denial_can_be_pasted_as_it_is_shown(name: str) -> None:
    for attempt in (
        Attempt("file.read", FileTarget(f"/ws/{name}")),
        Attempt("shell.execute", ProgramTarget("/usr/bin/x", ("x", name))),
    ):
        line = denial_line(attempt, DENIED, "/ws")
        assert all(map(is_seen, line))
        allowing = line.partition("; to allow: ")[2]
        text = f'version: "1.0"\nruntime: none\nrules:\n  {allowing}\n'
        compiled = compile_policy(load(text, name="p.yaml"), Context("/ws", "/home/u"))
        assert compiled.evaluate(attempt).decision is Decision.ALLOW, allowing
