"""What the sandbox asks of whoever decides; the broker's side implements it."""

from __future__ import annotations

from typing import Protocol

from safeclaw.policies.model import Attempt, Verdict


class Gate(Protocol):
    """Judges attempts.  Every method may be called from several threads.

    ``judge`` records the decision before it returns; a gate that cannot record
    answers deny.
    """

    def judge(self, attempt: Attempt, *, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Decide and record one attempt."""
        ...

    def peek(self, attempt: Attempt) -> Verdict:
        """Decide without a record: for the second half of a two-sided attempt."""
        ...

    def violation(self, attempt: Attempt, *, pid: int, exe: str, reason: str) -> None:
        """Record that what happened is not what was approved."""
        ...

    def started(self, walls: dict[str, object]) -> None:
        """Record the walls, before the agent's first instruction; raises to abort."""
        ...
