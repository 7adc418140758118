"""A verification's verdict: what was checked, against what, and what that leaves open."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final


class Status(enum.StrEnum):
    """The verdict on a journal."""

    INTACT = "intact"
    TAMPERED = "tampered"
    INCOMPLETE = "incomplete"


EXIT_STATUS: Final = {Status.INTACT: 0, Status.TAMPERED: 1, Status.INCOMPLETE: 3}


@dataclass(frozen=True)
class Finding:
    """The first thing that is wrong: where (line from 1; 0 when it is the file), and what."""

    segment: str
    line: int
    seq: int | None
    what: str

    def __str__(self) -> str:
        place = f"{self.segment}:{self.line}" if self.line else self.segment
        sequence = "" if self.seq is None else f" (record {self.seq})"
        return f"{place}{sequence}: {self.what}"


@dataclass(frozen=True)
class Anchor:
    """Something kept elsewhere that the chain agreed with, and what that cannot exclude."""

    what: str
    leaves_open: str

    def __str__(self) -> str:
        return self.what


@dataclass
class Report:
    """What was checked, against what, and what that leaves open."""

    status: Status = Status.INTACT
    finding: Finding | None = None
    chain: str = ""
    records: int = 0
    segments: int = 0
    checkpoints: int = 0
    pruned: int = 0  # records before the first that is left
    epochs: int = 1  # signing keys, as far back as the chain and its keyring show
    last_key: str = ""  # in force at the end
    signed: int = 0  # records that the latest good checkpoint covers
    first_ts: str = ""
    last_ts: str = ""
    anchors: list[Anchor] = field(default_factory=lambda: list[Anchor]())
    notes: list[str] = field(default_factory=lambda: list[str]())
    unchecked: list[str] = field(default_factory=lambda: list[str]())  # that was there to check

    @property
    def exit_status(self) -> int:
        """Return the exit status that says this verdict."""
        return EXIT_STATUS[self.status]

    @property
    def headline(self) -> str:
        """Return the verdict in words; "intact" only where an anchor vouches for it."""
        if self.status is not Status.INTACT:
            return str(self.status)
        return "intact" if self.anchors else "internally consistent"

    def checked(self) -> list[str]:
        """Return what was looked at."""
        return [
            f"{self.records - self.pruned} records in {self.segments} segments: "
            "canonical form, sequence, links, chain id, clock",
            f"{self.checkpoints} checkpoints: size, root, signature",
            *(
                [f"{self.epochs} signing keys, each certified by the one before"]
                if self.epochs > 1
                else []
            ),
            *(
                [f"{self.pruned} records before these were pruned behind a record"]
                if self.pruned
                else []
            ),
            *(f"anchor: {anchor}" for anchor in self.anchors),
        ]

    def open_questions(self) -> list[str]:
        """Return what this verification cannot exclude."""
        left: list[str] = []
        if not self.anchors:
            left.append(
                "that whoever owns the files and the key rewrote all of it, "
                "or put an older copy in its place: give --checkpoint, --witness or --public-key"
            )
        left += [f"{anchor.what}: {anchor.leaves_open}" for anchor in self.anchors]
        if self.records > self.signed:
            left.append(
                f"changes to the last {self.records - self.signed} records, "
                "which no checkpoint covers yet"
            )
        left += self.unchecked
        left.append("that records after the last one were cut off together with their checkpoint")
        return left


def whose(directory: Path) -> str:
    """Return who can rewrite these files, in words; empty when nobody knows."""
    try:
        uid = directory.stat().st_uid
    except OSError:
        return ""
    if directory.resolve().is_relative_to("/var/lib/safeclaw"):
        return f"the system daemon's (uid {uid}): out of reach of agents and users, not of root"
    return f"a user's own (uid {uid}): that user and root can rewrite it; anchors bind them"
