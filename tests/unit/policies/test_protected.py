"""What is protected is said to be so, whatever else a rule would have refused first.

A session that only observes lets through what a rule refuses: the verdict must name
what no rule can give.
"""

from __future__ import annotations

import pytest

from safeclaw.policies.compiled import PROTECTED, CompiledPolicy, compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, Decision, FileTarget, ProgramTarget, SocketTarget

ALL = 'version: "1.0"\nrules:\n  - {action: "*", effect: allow}\n'
NOTHING = (
    'version: "1.0"\nrules:\n  - {action: file.write, path: "a/b/**", effect: deny}\n'
    '  - {action: "*", effect: deny}\n'
)


def ready(text: str) -> CompiledPolicy:
    context = Context(
        workspace="/ws",
        home="/home/u",
        protected=("/state",),
        read_only=("/ws/z/policy.yaml",),
        caseless=("/ws/usb/one",),
    )
    return compile_policy(load(text, name="p.yaml"), context)


@pytest.mark.parametrize("text", [ALL, NOTHING])
@pytest.mark.parametrize(
    ("action", "path", "to"),
    [
        ("file.read", "/state/journal", None),
        ("file.write.modify", "/ws/z/policy.yaml", None),
        ("file.write.rename", "/ws/mine", "/ws/z/policy.yaml"),
        ("file.write.rename", "/ws/z/policy.yaml", "/ws/away"),
        ("file.write.rename", "/ws/z", "/ws/away"),
        ("file.write.rename", "/ws", "/away"),
        ("file.write.rename", "/ws/a", "/ws/z"),
        ("file.read", "/ws/usb/one", None),
        ("file.write.create", "/ws/usb/one/file", None),
        ("file.write.rename", "/ws/usb", "/ws/away"),
        ("file.write.rename", "/ws/a", "/ws/usb"),
        ("file.write.link", "/state/key", "/ws/key"),
        ("file.write.link", "/ws/mine", "/state/key"),
        ("file.write.modify", "/proc/sys/kernel/core_pattern", None),
        ("file.write.modify", "/sys/power/state", None),
        ("file.write.modify", "/proc/sysrq-trigger", None),
    ],
)
def test_what_is_protected_is_refused_as_that(
    text: str, action: str, path: str, to: str | None
) -> None:
    verdict = ready(text).evaluate(Attempt(action, FileTarget(path, to)))
    assert (verdict.decision, verdict.rule) == (Decision.DENY, PROTECTED)


@pytest.mark.parametrize(
    ("action", "path"),
    [
        ("file.read", "/proc/sys/kernel/pid_max"),
        ("file.write.modify", "/proc/self/comm"),
        ("file.write.modify", "/system/x"),
        ("file.read", "/ws/z/policy.yaml"),
    ],
)
def test_what_lies_beside_it_is_not(action: str, path: str) -> None:
    assert ready(ALL).evaluate(Attempt(action, FileTarget(path))).decision is Decision.ALLOW


def test_a_policy_can_be_shut_out_of_further_places() -> None:
    before = ready(ALL)
    read = Attempt("file.read", FileTarget("/ws/usb/two/file"))
    run = Attempt("shell.execute", ProgramTarget("/ws/usb/two/program", ("program",)))
    move = Attempt("file.write.rename", FileTarget("/ws/usb", "/ws/away"))
    reach = Attempt("network.connect", SocketTarget("/ws/usb/two/socket"))
    first = Attempt("file.read", FileTarget("/ws/usb/one/file"))
    assert before.writable("/ws/usb/two/file")
    after = before.shut(("/ws/usb/two",))
    for attempt in (read, run, move, reach, first):
        verdict = after.evaluate(attempt)
        assert (verdict.decision, verdict.rule) == (Decision.DENY, PROTECTED)
    assert not after.writable("/ws/usb/two/file")
    assert before.evaluate(read).decision is Decision.ALLOW
    near = Attempt("file.read", FileTarget("/ws/usb/twofold"))
    assert after.evaluate(near).decision is Decision.ALLOW
