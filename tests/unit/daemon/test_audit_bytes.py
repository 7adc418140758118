"""An evidence package in which one byte is another does not check out, with either verifier."""

from __future__ import annotations

import random
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from safeclaw.daemon.cli.audit import audit_group
from safeclaw.daemon.cli.audit_export import query
from safeclaw.daemon.evidence.package import NOTE, build, check, check_directory, unpack
from safeclaw.daemon.journal import Journal
from safeclaw.daemon.journal.report import Status
from safeclaw.errors import JournalError
from tests.journals import decision
from tests.standalone import PATH, standalone


@pytest.fixture(name="package")
def _package(tmp_path: Path) -> Path:
    """Make a small package, as an operator does."""
    state = tmp_path / "state"
    with Journal.open(state / "journal") as journal:
        for number in range(3):
            journal.append(decision(number))
    output = tmp_path / "evidence.zip"
    build(state, query("2020-01-01", None), output, repository=tmp_path)
    return output


@pytest.fixture(name="place")
def _place(package: Path, tmp_path: Path) -> Path:
    place = tmp_path / "unpacked"
    place.mkdir()
    unpack(package, place)
    assert check_directory(place, None).status is Status.INTACT
    assert standalone(place) == 0
    return place


def files_of(place: Path) -> list[Path]:
    return sorted(path for path in place.rglob("*") if path.is_file())


def others(byte: int, chance: random.Random) -> Iterator[int]:
    """Yield other bytes for one: one bit changed, and what some readers take for the same."""
    yield byte ^ (1 << chance.randrange(8))
    yield from {ord("\n"): b"\r", ord(" "): b"\t", ord("/"): b"_", ord("="): b"A"}.get(byte, b"")


def unnoticed(place: Path, stride: int) -> list[tuple[str, int, int]]:
    """Change every ``stride``-th byte in turn; return what a verifier did not find."""
    chance = random.Random(stride)
    found: list[tuple[str, int, int]] = []
    tried = 0
    for path in files_of(place):
        content = path.read_bytes()
        # The signature is small, and what all else hangs on.
        step = 1 if path.name == NOTE else stride
        for at in range(chance.randrange(step), len(content), step):
            for other in others(content[at], chance):
                path.write_bytes(content[:at] + bytes([other]) + content[at + 1 :])
                ours, theirs = check_directory(place, None), standalone(place)
                if ours.status is not Status.TAMPERED or theirs == 0:
                    found.append((path.name, at, other))
                tried += 1
        path.write_bytes(content)
    assert check_directory(place, None).status is Status.INTACT
    assert tried > sum(len(path.read_bytes()) for path in files_of(place)) // stride
    return found


def test_one_byte_in_a_file_of_it(place: Path) -> None:
    assert unnoticed(place, 17) == []


@pytest.mark.soak
def test_every_byte_in_every_file_of_it(place: Path) -> None:
    assert unnoticed(place, 1) == []


def test_a_file_more_or_less_or_under_another_name(place: Path) -> None:
    (place / "more").write_bytes(b"")
    assert check_directory(place, None).status is Status.TAMPERED
    assert standalone(place) == 1
    (place / "more").unlink()
    for path in files_of(place):
        path.rename(place / "away")
        assert check_directory(place, None).status is Status.TAMPERED, path.name
        assert standalone(place) != 0, path.name
        (place / "away").rename(path)
    assert standalone(place) == 0


def test_one_byte_of_the_zip_file_itself(package: Path, place: Path, tmp_path: Path) -> None:
    """It does not check out, or it is a byte that unpacks to the very same files."""
    content, changed = package.read_bytes(), tmp_path / "changed.zip"
    whole = {path.relative_to(place): path.read_bytes() for path in files_of(place)}
    refused = 0
    for at in range(0, len(content), 29):
        changed.write_bytes(content[:at] + bytes([content[at] ^ 1]) + content[at + 1 :])
        try:
            intact = check(changed, None).status is Status.INTACT
        except JournalError:
            intact = False
        refused += not intact
        if intact:
            again = tmp_path / f"again-{at}"
            again.mkdir()
            unpack(changed, again)
            assert {path.relative_to(again): path.read_bytes() for path in files_of(again)} == whole
    assert refused > len(content) // 29 // 2


def test_the_commands_say_so(place: Path, tmp_path: Path) -> None:
    chance = random.Random(7)
    for path in chance.sample([path for path in files_of(place) if path.stat().st_size], 4):
        content = path.read_bytes()
        at = chance.randrange(len(content))
        path.write_bytes(content[:at] + bytes([content[at] ^ 4]) + content[at + 1 :])
        again = tmp_path / "again.zip"
        with zipfile.ZipFile(again, "w") as archive:
            for one in files_of(place):
                archive.write(one, str(one.relative_to(place)))
        done = CliRunner().invoke(audit_group, ["evidence", "verify", str(again)])
        assert done.exit_code == 1, (path.name, at)
        assert "first fault: " in done.stdout
        by_hand = subprocess.run(
            [sys.executable, "-I", str(PATH), str(place)],
            capture_output=True,
            text=True,
            check=False,
        )
        assert by_hand.returncode in (1, 3), (path.name, at)
        assert "Traceback" not in by_hand.stderr
        path.write_bytes(content)
