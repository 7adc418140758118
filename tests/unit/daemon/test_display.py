"""What a person is told of a denial: a line that shows itself whole, and can be used."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from safeclaw.daemon.display import denial_line
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.context import Context
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


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user")
def test_what_no_thread_was_there_to_tell_is_told_at_the_end_and_in_order() -> None:
    """In a process of its own, of a user who may have no thread more until its limit is raised."""
    script = """if True:
        import os, resource
        from safeclaw.daemon.display import Teller
        teller = Teller()
        os.setresuid(65533, 65533, 65533)
        resource.setrlimit(resource.RLIMIT_NPROC, (1, resource.getrlimit(resource.RLIMIT_NPROC)[1]))
        teller.tell("the agent is stopped")
        os.write(2, b"so far nothing\\n")
        hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
        resource.setrlimit(resource.RLIMIT_NPROC, (hard, hard))
        teller.tell("denied: 1")
        teller.settle()
    """
    done = subprocess.run(
        [sys.executable, "-c", script], check=True, capture_output=True, text=True
    )
    assert done.stderr.splitlines() == ["so far nothing", "the agent is stopped", "denied: 1"]


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
