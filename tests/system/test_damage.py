"""``safeclaw audit verify`` on a chain that a real run wrote, intact and damaged."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.system.conftest import Person

SEGMENT = "segment-000001.jsonl"


def verify(person: Person, state: Path, *more: str) -> subprocess.CompletedProcess[str]:
    person.own()
    return person.safeclaw("audit", "verify", "--state", str(state), *more)


def test_verify_names_segment_line_and_what_is_wrong(person: Person) -> None:
    person.write("agent.sh", "cat /etc/shadow\necho one > one\ncat one\nmkdir -p two\n")
    for _ in range(2):
        ended = person.safeclaw("run", "--", "sh", "agent.sh")
        assert ended.returncode == 0, ended.stderr
    state = person.state / "safeclaw"
    lines = (state / "journal" / SEGMENT).read_bytes().splitlines(keepends=True)
    kinds = [json.loads(line)["type"] for line in lines]

    # Anchored by a checkpoint that was kept elsewhere: intact, nothing less.
    kept = person.base / "kept"
    shutil.copy(state / "journal" / "checkpoint", kept)
    whole = verify(person, state, "--checkpoint", str(kept))
    assert whole.returncode == 0, whole.stdout
    assert f"{state}/journal: intact\n" in whole.stdout
    said = verify(person, state, "--json")
    report = json.loads(said.stdout)
    assert (said.returncode, report["finding"], report["records"]) == (0, None, len(lines))

    damaged = person.base / "damaged"

    def damage(changed: list[bytes]) -> None:
        shutil.rmtree(damaged, ignore_errors=True)
        shutil.copytree(state, damaged, ignore=shutil.ignore_patterns("*.sock"))
        (damaged / "journal" / SEGMENT).write_bytes(b"".join(changed))

    def finds(line: int, what: str) -> None:
        said = verify(person, damaged)
        assert said.returncode == 1, said.stdout
        assert said.stdout.startswith(f"{damaged}/journal: tampered"), said.stdout
        assert f"  first fault: {SEGMENT}:{line} (record {line - 1}): {what}" in said.stdout
        assert "Traceback" not in said.stderr

    # One flipped bit in a value, where the line stays well-formed: the next record's link says it.
    at = next(number for number, line in enumerate(lines) if b'"/etc/shadow"' in line)
    flipped = lines[at].replace(b'"/etc/shadow"', b'"/etc/shadov"')
    damage([*lines[:at], flipped, *lines[at + 1 :]])
    finds(at + 2, "prev is not the hash of the record before")

    # One flipped byte in a key: the line itself is no record any more.
    damage([*lines[:at], lines[at].replace(b'"action"', b'"actioN"'), *lines[at + 1 :]])
    finds(at + 1, "not a record")

    # One deleted line.
    damage([*lines[:at], *lines[at + 1 :]])
    finds(at + 1, f"the record says {at + 1}, {at} is due here")

    # The tail, cut at a record's end, behind the latest checkpoint's back.
    signed = max(number for number, kind in enumerate(kinds) if kind == "checkpoint")
    for cut in (signed, at + 1):
        damage(lines[:cut])
        said = verify(person, damaged)
        assert said.returncode == 1, said.stdout
        assert (
            f"first fault: {SEGMENT}:{cut} (record {cut}): the chain ends after {cut} records"
            in (said.stdout)
        )
        assert "the tail was cut off" in said.stdout

    # Cut together with its checkpoint: only what was kept elsewhere can tell, and does.
    shorter = kinds.index("checkpoint") + 1
    damage(lines[:shorter])
    (damaged / "journal" / "checkpoint").write_text(
        json.loads(lines[shorter - 1])["detail"]["note"]
    )
    assert verify(person, damaged).returncode == 0
    said = verify(person, damaged, "--checkpoint", str(kept))
    assert said.returncode == 1
    assert f"{kept} was signed for {len(lines)}: the tail was cut off" in said.stdout

    # And the original, which nobody touched, is still what it was.
    assert verify(person, state, "--checkpoint", str(kept)).returncode == 0
