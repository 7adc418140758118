"""The published vectors, found alike by ``audit verify`` and by the auditor's own verifier."""

from __future__ import annotations

import ast
import json
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from safeclaw.daemon.evidence.package import check, unpack
from safeclaw.daemon.journal import files, keys
from safeclaw.daemon.journal.verifier import read_checkpoint, verify
from tests.standalone import PATH, standalone

VECTORS = Path(__file__).parents[3] / "docs" / "test-vectors"
NAMES = sorted(path.parent.name for path in VECTORS.glob("*/journal"))
PACKAGES = sorted(path.parent.name for path in VECTORS.glob("*/evidence.zip"))


@pytest.mark.parametrize("name", NAMES)
def test_both_verifiers_find_what_is_published(name: str) -> None:
    vector = VECTORS / name
    expected = json.loads((vector / "expected.json").read_text())
    public_key, kept = vector / "public-key", vector / "checkpoint"
    report = verify(
        vector / "journal",
        public_key=keys.read_public_keys(public_key) if public_key.exists() else None,
        checkpoints=[read_checkpoint(kept)] if kept.exists() else [],
    )
    assert report.exit_status == expected["exit_status"], report.finding
    if report.finding is None:
        assert report.records == expected["records"]
    else:
        assert (report.finding.line, report.finding.seq) == (expected["line"], expected["seq"])
    status = standalone(
        vector / "journal",
        public_key=public_key if public_key.exists() else None,
        checkpoint=kept if kept.exists() else None,
    )
    assert status == expected["exit_status"]


@pytest.mark.parametrize("name", PACKAGES)
def test_both_verifiers_find_what_is_published_of_a_package(name: str, tmp_path: Path) -> None:
    vector = VECTORS / name
    status = json.loads((vector / "expected.json").read_text())["exit_status"]
    public_key = vector / "public-key"
    report = check(vector / "evidence.zip", keys.read_public_keys(public_key))
    assert report.exit_status == status, report.finding
    unpack(vector / "evidence.zip", tmp_path)
    assert standalone(tmp_path, public_key=public_key) == status


def test_there_is_a_vector_for_every_verdict() -> None:
    statuses = {json.loads((VECTORS / name / "expected.json").read_text())["exit_status"]
                for name in NAMES}  # fmt: skip
    assert statuses == {0, 1, 3}
    assert len(NAMES) >= 30
    assert len(PACKAGES) == 2


def test_the_verifiers_agree_on_damage_of_every_kind(tmp_path: Path) -> None:
    chance = random.Random(4)
    for number in range(150):
        place = tmp_path / str(number)
        shutil.copytree(VECTORS / "intact" / "journal", place)
        found = sorted(path for path in place.iterdir())
        path = chance.choice(found)
        content = bytearray(path.read_bytes())
        at = chance.randrange(len(content))
        match chance.randrange(4):
            case 0:
                content[at] ^= 1 << chance.randrange(8)
            case 1:
                del content[at : at + chance.randrange(1, 2000)]
            case 2:
                content[at:at] = content[at // 2 : at // 2 + chance.randrange(1, 900)]
            case _:
                del content[at:]
        path.write_bytes(content)
        ours = verify(place)
        assert standalone(place) == ours.exit_status, (number, path.name, ours.finding)


def test_the_auditors_verifier_needs_nothing_of_safeclaw(tmp_path: Path) -> None:
    tree = ast.parse(PATH.read_text())
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in ([node.module or ""] if isinstance(node, ast.ImportFrom)
                     else [alias.name for alias in node.names])
    }  # fmt: skip
    assert imported - set(sys.stdlib_module_names) == {"cryptography"}
    shutil.copytree(VECTORS / "intact", tmp_path / "intact")
    shutil.copyfile(PATH, tmp_path / "verify.py")
    arguments = ["intact/journal", "--public-key", "intact/public-key"]
    command = [sys.executable, "-I", "verify.py", *arguments]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"}
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout.splitlines()[0]) == (0, "INTACT"), result.stderr
    (tmp_path / "intact" / "journal" / files.segment_name(1)).write_bytes(b"{}\n")
    result = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert result.returncode == 1
    assert result.stdout.startswith("TAMPERED: segment-000001.jsonl:1 (record 0)")
