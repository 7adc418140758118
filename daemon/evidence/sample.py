"""A sample an auditor can draw again: chosen by a seed, each with its proof."""

from __future__ import annotations

from hashlib import sha256
from heapq import heappush, heapreplace
from pathlib import Path

import msgspec

from safeclaw.daemon.evidence.export import InclusionProof, as_field
from safeclaw.daemon.evidence.selection import Found, Pass, Query


class Sampled(msgspec.Struct, frozen=True):
    """One record of a sample: its line in the chain, and its proof, if a checkpoint covers it."""

    seq: int
    line: str
    proof: InclusionProof | None


class Sample(msgspec.Struct, frozen=True):
    """A sample, with everything that is needed to draw it again."""

    chain: str
    query: dict[str, str]
    seed: str
    population: int
    checkpoint: str
    records: list[Sampled]


def draw(directory: Path, query: Query, count: int, seed: str) -> Sample:
    """Return ``count`` of the records that match, the same ones for the same seed.

    Each record's ticket is SHA-256(seed, newline, its sequence number in decimal); the
    lowest tickets win.  Anyone can check that none was left out.  Memory grows with
    ``count`` alone.

    Raises:
        JournalError: there is no journal, or a line of it is no record.
    """
    # The largest ticket on top: tickets are negated.
    chosen: list[tuple[int, int, Found]] = []
    first = Pass(directory, query)
    for found in first.found():
        seq = found.record.seq
        ticket = -int.from_bytes(sha256(f"{seed}\n{seq}".encode()).digest(), "big")
        if len(chosen) < count:
            heappush(chosen, (ticket, seq, found))
        elif chosen and ticket > chosen[0][0]:
            heapreplace(chosen, (ticket, seq, found))
    again = Pass(directory, query)
    proved = again.proved({seq for _, seq, _ in chosen})
    proofs = {proof.seq: as_field(proof) for proof in proved}
    records = [
        Sampled(seq, found.line.decode(), proofs.get(seq))
        for _, seq, found in sorted(chosen, key=lambda item: item[1])
    ]
    return Sample(
        chain=first.chain,
        query=query.fields(),
        seed=seed,
        population=first.count,
        checkpoint=again.note,
        records=records,
    )
