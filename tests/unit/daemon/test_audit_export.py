"""``safeclaw audit export`` and ``sample`` on a real chain of many kinds of records."""

from __future__ import annotations

import base64
import csv
import io
import json
import os
import re
import signal
from hashlib import sha256
from pathlib import Path
from typing import Any

import msgspec
import pytest

from safeclaw.daemon.evidence.export import InclusionProof, Manifest, export, holds
from safeclaw.daemon.evidence.formats import FORMATS
from safeclaw.daemon.evidence.sample import Sample
from safeclaw.daemon.evidence.selection import Query
from safeclaw.daemon.journal import Entry, Journal, RecordType, files, keys
from safeclaw.daemon.journal.merkle import leaf_hash
from safeclaw.errors import JournalError, UsageError
from tests.journals import POLICY, decision
from tests.unit.daemon.auditing import broken_off, run

TARGETS: list[tuple[str, dict[str, object]]] = [
    ("file.read", {"path": "/work/a=b|c\\d"}),
    ("file.write.rename", {"path": "/work/a", "to": "/work/b"}),
    ("shell.execute", {"program": "/usr/bin/git", "argv": ["git", "push", "a b"]}),
    ("network.connect", {"protocol": "tcp", "address": "192.0.2.1", "port": 443}),
    ("file.read", {"path": "=cmd|' /C calc'!A0"}),
]


@pytest.fixture
def state(tmp_path: Path) -> Path:
    with Journal.open(tmp_path / "journal") as journal:
        journal.upkeep.segment_bytes = 5000
        for number, (action, target) in enumerate(TARGETS * 4):
            journal.append(
                Entry(
                    type=RecordType.DECISION,
                    session="s-1",
                    agent="=SUM(1)" if number == 4 else "tester",
                    attempt=number,
                    pid=7,
                    uid=1000,
                    exe="/usr/bin/python3",
                    action=action,
                    target=target,
                    decision="deny" if number % 5 == 3 else "allow",
                    rule="default:1",
                    reason="a\u2028b \x1b[2J",
                    policy=POLICY,
                )
            )
        journal.append(Entry(type=RecordType.VIOLATION, session="s-1", reason="not what it was"))
    return tmp_path


def exported(state: Path, kind: str, *arguments: str) -> tuple[str, Manifest]:
    target = state / f"out.{kind}"
    result = run("export", "--state", str(state), "--format", kind, "--output", str(target),
                 *arguments)  # fmt: skip
    assert result.exit_code == 0, (result.output, result.exception)
    with target.open(encoding="utf-8", newline="") as stream:
        text = stream.read()
    content = Path(f"{target}.manifest.json").read_bytes()
    return text, msgspec.json.decode(content, type=Manifest)


def test_a_line_export_is_the_chain_itself(state: Path) -> None:
    text, manifest = exported(state, "jsonl")
    chain = b"".join(path.read_bytes() for _, path in files.segments(state / "journal"))
    assert text.encode() == chain
    assert manifest.sha256 == sha256(chain).hexdigest()
    assert (manifest.first_seq, manifest.left_out) == (0, 0)
    assert manifest.last_seq == manifest.records - 1


def test_every_record_of_an_export_has_a_proof_that_holds(state: Path) -> None:
    text, manifest = exported(state, "jsonl", "--decision", "deny")
    lines = text.splitlines() if "\u2028" not in text else text.split("\n")[:-1]
    known = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    assert len(lines) == manifest.records == len(manifest.proofs) == 4
    assert manifest.left_out > 4
    for line, proof in zip(lines, manifest.proofs, strict=True):
        assert base64.b64decode(proof.leaf) == leaf_hash(line.encode())
        assert holds(proof, manifest.checkpoint, known)
        moved = InclusionProof(proof.seq + 1, proof.leaf, proof.path)
        assert not holds(moved, manifest.checkpoint, known)
    with pytest.raises(JournalError):
        holds(manifest.proofs[0], manifest.checkpoint, [])


def test_the_json_export_is_one_document_with_its_manifest(state: Path) -> None:
    result = run("export", "--state", str(state), "--format", "json", "--agent", "tester",
                 "--since", "30 days")  # fmt: skip
    value = json.loads(result.stdout)
    assert value["manifest"]["records"] == len(value["records"]) == 19
    assert value["manifest"]["query"]["agent"] == "tester"
    assert "exported 19 of the journal's 27 records, from " in result.stderr


def test_a_table_cell_is_never_a_formula(state: Path) -> None:
    text, _ = exported(state, "csv")
    rows = list(csv.DictReader(io.StringIO(text, newline="")))
    assert "'=SUM(1)" in {row["agent"] for row in rows}
    assert all(cell[:1] not in "=+-@\t\r" or not cell for row in rows for cell in row.values())
    assert "\x1b" not in text
    assert "\u2028" not in text
    assert rows[1]["action"] == "file.read"


def test_common_event_format_escapes_its_own_signs(state: Path) -> None:
    text, manifest = exported(state, "cef")
    lines = text.split("\n")[:-1]
    assert len(lines) == manifest.records
    for line in lines:
        head = re.split(r"(?<!\\)\|", line, maxsplit=7)
        assert head[0] == "CEF:0"
        assert len(head) == 8
        assert head[6].isdigit()
        fields = dict(re.findall(r"(?:^|(?<= ))(\w+)=((?:\\.|[^\\=])*)(?= \w+=|$)", head[7]))
        assert fields["externalId"].isdigit()
        assert int(fields["rt"]) > 1_700_000_000_000
    assert r"filePath=/work/a\=b|c\\\\d" in text or r"filePath=/work/a\=b|c\\d" in text


#: What the published classes require, for what this exports (OCSF 1.3.0).
REQUIRED = {
    0: set[str](),
    1001: {"actor", "device", "file"},
    1007: {"actor", "device", "process"},
    4001: {"dst_endpoint"},
}


def test_ocsf_events_have_what_their_classes_require(state: Path) -> None:
    text, _ = exported(state, "ocsf")
    events = [json.loads(line) for line in text.split("\n")[:-1]]
    assert {event["class_uid"] for event in events} == set(REQUIRED)
    for event in events:
        always = {"activity_id", "category_uid", "class_uid", "metadata", "severity_id", "time",
                  "type_uid"}  # fmt: skip
        assert always | REQUIRED[event["class_uid"]] <= set(event)
        assert event["type_uid"] == event["class_uid"] * 100 + event["activity_id"]
        assert {"product", "version"} <= set(event["metadata"])
        if "file" in event:
            assert {"name", "type_id"} <= set(event["file"])
        if "device" in event:
            assert "type_id" in event["device"]
    denied = [event for event in events if event.get("action_id") == 2]
    assert {event["disposition_id"] for event in denied} == {2}


def test_ecs_and_otlp_carry_every_record_once(state: Path) -> None:
    text, manifest = exported(state, "ecs")
    documents = [json.loads(line) for line in text.split("\n")[:-1]]
    assert [item["event"]["sequence"] for item in documents] == list(range(manifest.records))
    assert {item["ecs"]["version"] for item in documents} == {"8.11.0"}
    assert documents[4]["destination"]["ip"] == "192.0.2.1"
    assert documents[4]["event"]["type"] == ["connection", "denied"]
    text, manifest = exported(state, "otlp")
    requests: list[Any] = [json.loads(line) for line in text.split("\n")[:-1]]
    records = [
        record
        for request in requests
        for resource in request["resourceLogs"]
        for scope in resource["scopeLogs"]
        for record in scope["logRecords"]
    ]
    assert len(records) == manifest.records
    assert all(record["timeUnixNano"].isdigit() for record in records)


def test_an_export_of_nothing_says_so_and_is_well_formed(state: Path) -> None:
    for kind in FORMATS:
        text, manifest = exported(state, kind, "--agent", "nobody")
        assert manifest.records == 0
        assert manifest.left_out > 20
        if kind == "json":
            assert json.loads(text)["records"] == []


def test_usage_errors_have_one_line_and_a_hint(state: Path, tmp_path: Path) -> None:
    result = run("export", "--state", str(state), "--since", "soon")
    assert isinstance(result.exception, UsageError)
    assert result.exception.hint
    assert run("export", "--state", str(state), "--format", "xml").exit_code == 2
    result = run("export", "--state", str(tmp_path / "none"))
    assert isinstance(result.exception, JournalError)
    assert result.exception.hint
    target = tmp_path / "no" / "such"
    result = run("export", "--state", str(state), "--output", str(target))
    assert isinstance(result.exception, JournalError)
    assert not target.parent.exists()


def test_a_long_export_proves_its_ends(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        for number in range(1200):
            journal.append(decision(number))
    _, manifest = exported(tmp_path, "jsonl")
    known = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)
    assert len(manifest.proofs) == 1001
    assert manifest.proofs[-1].seq == manifest.last_seq
    assert holds(manifest.proofs[-1], manifest.checkpoint, known)


def test_a_sample_is_the_same_for_the_same_seed_and_proves_itself(state: Path) -> None:
    def drawn(seed: str) -> Sample:
        result = run("sample", "--state", str(state), "--n", "6", "--seed", seed, "--json",
                     "--type", "decision")  # fmt: skip
        assert result.exit_code == 0, result.output
        return msgspec.json.decode(result.stdout, type=Sample)

    first = drawn("auditor's own words")
    assert first == drawn("auditor's own words")
    assert [item.seq for item in first.records] != [item.seq for item in drawn("other").records]
    assert (first.population, len(first.records)) == (20, 6)
    known = keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    for item in first.records:
        assert item.proof is not None
        assert base64.b64decode(item.proof.leaf) == leaf_hash(item.line.encode())
        assert holds(item.proof, first.checkpoint, known)
    # Nobody could have left one out: the tickets say which they are.
    seqs = [
        json.loads(line)["seq"]
        for _, path in files.segments(state / "journal")
        for line in path.read_bytes().split(b"\n")[:-1]
        if b'"type":"decision"' in line
    ]
    tickets = sorted(seqs, key=lambda seq: sha256(f"auditor's own words\n{seq}".encode()).digest())
    assert sorted(tickets[:6]) == [item.seq for item in first.records]


def test_proofs_of_a_pruned_chain_hold(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.upkeep.segment_bytes = 4000
        for number in range(40):
            journal.append(decision(number))
        journal.commit()
        assert journal.prune(0, override=True)
    _, manifest = exported(tmp_path, "jsonl")
    known = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)
    assert manifest.first_seq
    assert all(holds(proof, manifest.checkpoint, known) for proof in manifest.proofs)


def test_every_proof_is_of_the_checkpoint_beside_it_while_the_chain_grows(tmp_path: Path) -> None:
    directory = tmp_path / "journal"

    def grow(count: int) -> None:
        with Journal.open(directory) as journal:
            for number in range(count):
                journal.append(decision(number))

    grow(20)
    written: list[str] = []

    def write(text: str) -> None:
        written.append(text)
        if len(written) == 15:  # of 10 that get a proof at once
            grow(20)

    manifest = export(directory, Query(), "jsonl", write, prove=10)
    known = keys.read_public_keys(tmp_path / "keys" / files.PUBLIC_KEY)
    assert all(holds(proof, manifest.checkpoint, known) for proof in manifest.proofs)
    size = int(manifest.checkpoint.split("\n")[1])
    assert manifest.records > size
    assert [proof.seq for proof in manifest.proofs] == [*range(10), size - 1]


def test_a_device_is_not_replaced_by_an_export(state: Path, tmp_path: Path) -> None:
    device = tmp_path / "null"  # as /dev/null is: there, and no file
    os.mkfifo(device)
    result = run("export", "--state", str(state), "--output", str(device))
    assert isinstance(result.exception, JournalError)
    assert result.exception.message.endswith("null: not an ordinary file")
    assert device.is_fifo()
    assert not list(tmp_path.glob("null.*"))


def test_an_export_goes_where_a_link_leads(state: Path, tmp_path: Path) -> None:
    place = tmp_path / "latest"
    place.symlink_to(tmp_path / "real.jsonl")
    assert run("export", "--state", str(state), "--output", str(place)).exit_code == 0
    assert place.is_symlink()
    assert (tmp_path / "real.jsonl").stat().st_size


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_export_that_is_broken_off_leaves_nothing(
    state: Path, tmp_path: Path, number: signal.Signals
) -> None:
    output = tmp_path / "out.jsonl"
    status = broken_off(number, output, "export", "--state", str(state))
    assert status == 128 + number
    assert not list(tmp_path.glob("out.*"))


def test_an_export_is_not_overwritten_by_its_manifest(state: Path, tmp_path: Path) -> None:
    output, link = tmp_path / "out.jsonl", tmp_path / "link"
    link.symlink_to(output)
    for manifest in (output, tmp_path / "." / "out.jsonl", link):
        result = run("export", "--state", str(state), "--output", str(output),
                     "--manifest", str(manifest))  # fmt: skip
        assert isinstance(result.exception, UsageError)
        assert "that is the export itself" in result.exception.message
        assert not output.exists()


def test_an_older_export_stays_where_its_new_manifest_cannot_be_written(state: Path) -> None:
    exported(state, "jsonl")
    before = {path: path.read_bytes() for path in state.glob("out.*")}
    words = ("--decision", "deny", "--output", str(state / "out.jsonl"))
    result = run("export", "--state", str(state), *words, "--manifest", str(state / "no/where"))
    assert isinstance(result.exception, JournalError)
    assert "no/where: No such file" in result.exception.message
    assert before == {path: path.read_bytes() for path in state.glob("out.*")}
