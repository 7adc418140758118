"""Makes the published test vectors: ``python -m tests.vectors docs/test-vectors``.

Each vector is a directory: ``journal/`` as a verifier gets it, perhaps
``public-key`` and ``checkpoint`` as anchors, and ``expected.json``; or an
``evidence.zip`` in the place of the journal.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
import tempfile
import zipfile
from pathlib import Path

import pytest

from safeclaw.daemon.cli.audit_export import query
from safeclaw.daemon.evidence.package import build
from safeclaw.daemon.journal import files, keys
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from tests.chain_attacks import ANCHORED, FOUND, Chain
from tests.journals import decision, set_boot_id

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


def packages(target: Path) -> None:
    """Write an evidence package, and the same with one byte changed in one of its files."""
    with tempfile.TemporaryDirectory() as name, pytest.MonkeyPatch.context() as patch:
        place = Path(name)
        patch.setattr(platform, "node", lambda: "host.example.com")
        patch.setattr(os, "getuid", lambda: 990)
        with Journal.open(place / "state" / "journal") as journal:
            for number in range(6):
                journal.append(decision(number, effect="deny" if number == 4 else "allow"))
        built = place / "evidence.zip"
        build(place / "state", query("2020-01-01", None), built, repository=place)
        changed = place / "changed.zip"
        with zipfile.ZipFile(built) as old, zipfile.ZipFile(changed, "w") as new:
            for member in old.namelist():
                content = old.read(member)
                if member == "export.jsonl":
                    content = content.replace(b'"decision":"deny"', b'"decision":"denY"')
                new.writestr(member, content)
        for word, path, status in (("package", built, 0), ("package-changed", changed, 1)):
            (target / word).mkdir()
            shutil.copyfile(path, target / word / "evidence.zip")
            shutil.copyfile(
                place / "state" / "keys" / files.PUBLIC_KEY, target / word / "public-key"
            )
            expected = {"exit_status": status}
            (target / word / "expected.json").write_text(json.dumps(expected, indent=1) + "\n")


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
    packages(target)


if __name__ == "__main__":
    with pytest.MonkeyPatch.context() as patch:
        set_boot_id(patch, 1)  # whose machine made them is nobody's business
        main(Path(sys.argv[1]))
