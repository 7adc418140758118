"""What the sandbox asks of whoever decides; the broker's side implements it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from safeclaw.policies.model import Attempt, OtherTarget, Verdict

#: Hands over the record of a decision that is made once more, for a pid, begun at that
#: monotonic time in ns.  False: nothing was recorded, have the attempt judged again.
Handover = Callable[[int, int], bool]


#: Who enforces where there is no view, and a name is not the session's: nothing allows it.
HELD_BACK = "confinement"


class Gate(Protocol):
    """Judges attempts.  Every method may be called from several threads.

    ``judge`` records the decision before it returns; a gate that cannot record
    answers deny, and so it does to what is enforced by ``HELD_BACK``.
    """

    def judge(self, attempt: Attempt, *, pid: int, exe: str, enforced_by: str) -> Verdict:
        """Decide and record one attempt."""
        ...

    def may_wait(self, attempt: Attempt) -> bool:
        """Whether ``judge`` may have to wait for somebody: an approval, a record on disk.

        It is not asked for where nobody else may be held up.
        """
        ...

    def repeatable(self, attempt: Attempt, *, exe: str, enforced_by: str) -> Handover | None:
        """Return how an attempt that is allowed is recorded each further time it is made.

        None where each time is to be judged anew.
        """
        ...

    def permits(self, attempt: Attempt) -> bool:
        """Whether the policy itself allows it: no record, and whatever observing lets through."""
        ...

    def peek(self, attempt: Attempt) -> Verdict:
        """Decide without a record: for the second half of a two-sided attempt."""
        ...

    def stands(self) -> bool:
        """Whether anything may be allowed now, so that what was decided before still holds.

        It waits for a broker that is away, as ``judge`` does.
        """
        ...

    def variables(self, environment: Sequence[bytes]) -> tuple[str, ...]:
        """Return the names for which the policy has no program started with this environment."""
        ...

    def shut(self, places: tuple[str, ...]) -> None:
        """Allow nothing in these places any more: names there are without regard to case."""
        ...

    def violation(
        self,
        attempt: Attempt,
        *,
        pid: int,
        exe: str,
        reason: str,
        stop: Callable[[], None] | None = None,
    ) -> None:
        """Record that what happened is not what was approved, ``stop`` it, and tell the person."""
        ...

    def limit(self, name: str, reason: str, stop: Callable[[], None] | None = None) -> None:
        """Record that the session has come to a limit, ``stop`` it, and tell the person."""
        ...

    def started(self, walls: dict[str, object]) -> None:
        """Record the walls, before the agent's first instruction; raises to abort."""
        ...


def end_for_defect(gate: Gate, where: str, problem: Exception, kill: Callable[[], None]) -> None:
    """Record that a thread which the session needs has failed, and end the session.

    SAFETY: in this order: a session that has ended takes no more records.
    """
    gate.violation(
        Attempt("sandbox.defect", OtherTarget(where)),
        pid=0,
        exe="",
        reason=f"stopped, for a defect in safeclaw: {type(problem).__name__}: {problem}",
        stop=kill,
    )
