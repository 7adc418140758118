"""Makes the published test vectors: ``python -m tests.vectors docs/test-vectors``.

Each vector is a directory: ``journal/`` as a verifier gets it, perhaps
``public-key`` and ``checkpoint`` as anchors, and ``expected.json``.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from pathlib import Path

import pytest

from safeclaw.daemon.journal import files, keys
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from tests.journals import decision, set_boot_id
from tests.unit.daemon.test_journal_attacks import ANCHORED, FOUND, Chain

_NEEDED = (files.CHECKPOINT, keys.KEYRING)


def publish(state: Path, target: Path, *, anchors: bool, note: tuple[str, str] | None) -> None:
    """Copy what a verifier needs, and write down what it is to find."""
    (target / "journal").mkdir(parents=True)
    for _, path in files.segments(state / "journal"):
        shutil.copyfile(path, target / "journal" / path.name)
    for name in _NEEDED:
        if (state / "journal" / name).exists():
            shutil.copyfile(state / "journal" / name, target / "journal" / name)
    given = None
    kept: list[tuple[str, str]] = []
    if anchors:
        shutil.copyfile(state / "keys" / files.PUBLIC_KEY, target / "public-key")
        given = keys.read_public_keys(target / "public-key")
    if note is not None:
        (target / "checkpoint").write_text(note[1])
        kept = [read_checkpoint(target / "checkpoint")]
    report = verify(target / "journal", public_key=given, checkpoints=kept)
    finding = report.finding
    expected = {
        "exit_status": report.exit_status,
        "records": report.records if finding is None else None,
        "segment": finding.segment if finding and not finding.segment.startswith("/") else None,
        "line": finding.line if finding else None,
        "seq": finding.seq if finding else None,
    }
    (target / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


def main(target: Path) -> None:
    """Write every vector anew."""
    for old in target.iterdir():
        if old.is_dir():
            shutil.rmtree(old)
    attacks = {name: entry[0] for name, entry in FOUND.items()}
    attacks |= {name: entry[0] for name, entry in ANCHORED.items()}
    for name, attack in attacks.items():
        with tempfile.TemporaryDirectory() as place:
            chain = Chain(Path(place))
            attack(chain)
            word = name.replace(" ", "-").replace(",", "").replace("+", "").lower()
            anchored = name in ANCHORED
            publish(
                Path(place), target / word, anchors=anchored, note=chain.kept if anchored else None
            )
    with tempfile.TemporaryDirectory() as place:
        chain = Chain(Path(place))
        publish(Path(place), target / "intact", anchors=True, note=chain.kept)
        with Journal.open(chain.directory) as journal:
            journal.prune(0, override=True)
            journal.append(decision(50))
        publish(Path(place), target / "intact-pruned", anchors=True, note=None)
        (chain.directory / files.CHECKPOINT).unlink()
        publish(Path(place), target / "no-checkpoint", anchors=False, note=None)
    with tempfile.TemporaryDirectory() as place:
        chain = Chain(Path(place))
        with files.segments(chain.directory)[-1][1].open("ab") as stream:
            stream.write(b'{"action":"file.re')
        publish(Path(place), target / "torn-tail", anchors=False, note=None)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        set_boot_id(patch, 1)  # whose machine made them is nobody's business
        main(Path(sys.argv[1]))
