"""What is written for other tools is read by them: by their parsers, or their published schemas.

OCSF 1.3.0's schemas as its server publishes them, the fields and values of ECS 8.11 as Elastic's
npm package has them, OpenTelemetry's own protobuf messages, a CEF parser, and NIST's schema of
OSCAL.  Each is shown to refuse what is not right, too.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from datetime import datetime
from functools import cache
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

import pytest

from safeclaw.daemon.evidence.controls import oscal
from safeclaw.daemon.evidence.selection import Query
from safeclaw.daemon.evidence.siem import OCSF_VERSION
from safeclaw.daemon.evidence.summary import summarize
from safeclaw.daemon.journal import Entry, Journal, RecordType, read
from safeclaw.daemon.journal.record import Record
from tests.journals import POLICY
from tests.unit.daemon.auditing import run

TARGETS: list[tuple[str, dict[str, object]]] = [
    ("file.read", {"path": "/work/a=b|c\\d"}),
    ("file.read", {"path": "/"}),
    ("file.read", {"path": "/work/x\u2028y \x1b[2J"}),
    ("file.write.create", {"path": "/work/a b"}),
    ("file.write.modify", {"path": "/work/a b"}),
    ("file.write.delete", {"path": "/work/a b"}),
    ("file.write.metadata", {"path": "/work/a b"}),
    ("file.write.rename", {"path": "/work/a", "to": "/work/b"}),
    ("file.write.link", {"path": "/work/a", "to": "/work/b"}),
    ("shell.execute", {"program": "/usr/bin/git", "argv": ["git", "push", "a b=c|d"]}),
    ("network.connect", {"protocol": "tcp", "address": "192.0.2.1", "port": 443}),
    ("network.connect", {"protocol": "tcp", "address": "2001:db8::1", "port": 443}),
    ("network.bind", {"protocol": "udp", "address": "127.0.0.1", "port": 0}),
    ("network.send", {"protocol": "udp", "address": "192.0.2.1", "port": 53}),
    ("network.connect", {"socket": "/run/x.sock"}),
    ("payment.send", {"what": "to=alice amount=3"}),
]  # fmt: skip


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A chain with a record of every type that a caller can make, and every kind of target."""
    with Journal.open(tmp_path / "journal") as journal:
        for number, (action, target) in enumerate(TARGETS * 2):
            journal.append(
                Entry(
                    type=RecordType.DECISION,
                    session="s-1",
                    agent="a=b|c" if number % 3 else None,
                    attempt=number,
                    pid=7,
                    uid=1000,
                    exe="/usr/bin/python3" if number % 2 else None,
                    action=action,
                    target=target,
                    fingerprint="cd" * 32,
                    decision="deny" if number < len(TARGETS) else "allow",
                    rule="default:1",
                    reason="because = | \\ \n of this",
                    policy=POLICY,
                    latency_ns=5,
                )
            )
        made = {RecordType.GENESIS, RecordType.CHECKPOINT, RecordType.ROTATE, RecordType.PRUNE,
                RecordType.KEY_CHANGE, RecordType.DECISION}  # fmt: skip
        for kind in sorted(set(RecordType) - made):
            journal.append(Entry(type=kind, session="s-1", reason="so", detail={"why": 1}))
        journal.roll_key()
    return tmp_path


def exported(state: Path, kind: str) -> list[str]:
    result = run("export", "--state", str(state), "--format", kind)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout.split("\n")[:-1]


def records(state: Path) -> list[Record]:
    return list(read(state / "journal"))


# ---- OCSF


@cache
def schemas() -> Any:
    module: Any = importlib.import_module("ocsf_json_schema")
    return module.OcsfJsonSchemaEmbedded(module.get_ocsf_schema(version=OCSF_VERSION))


@cache
def validator(class_uid: int) -> Any:
    jsonschema: Any = importlib.import_module("jsonschema")
    name = schemas().lookup_class_name_from_uid(class_uid=class_uid)
    schema = schemas().get_class_schema(class_name=name, profiles=["security_control"])
    return jsonschema.Draft202012Validator(schema)


def faults(event: dict[str, Any]) -> list[str]:
    found = validator(event["class_uid"]).iter_errors(event)
    return [f"{error.json_path}: {error.message}" for error in found]


def test_ocsf_events_pass_the_published_schema(state: Path) -> None:
    events = [json.loads(line) for line in exported(state, "ocsf")]
    assert len(events) == len(records(state))
    assert {event["class_uid"] for event in events} == {0, 1001, 1007, 4001}
    for event in events:
        assert event["metadata"]["version"] == "1.3.0"
        assert faults(event) == [], event
    # What the schema refuses is refused: it is at work.
    file = next(event for event in events if event["class_uid"] == 1001)
    for wrong in ({**file, "severity_id": "1"}, {**file, "nonsense": 1}, {**file, "time": "now"},
                  {key: value for key, value in file.items() if key != "actor"}):  # fmt: skip
        assert faults(wrong)


# ---- Elastic Common Schema


@cache
def elastic() -> dict[str, Any]:
    """Return what ECS 8.11 has: names with their types, and the values that are allowed."""
    found: dict[str, Any] = json.loads((Path(__file__).parent / "ecs-8.11.json").read_text())
    return found


def leaves(value: dict[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    for name, item in value.items():
        if isinstance(item, dict):
            yield from leaves(cast("dict[str, Any]", item), f"{before}{name}.")
        else:
            yield before + name, item


def is_of(value: object, kind: str) -> bool:
    """Whether Elasticsearch would take a value for a field of this type."""
    match kind:
        case "keyword" | "match_only_text" | "wildcard":
            return isinstance(value, str)
        case "long":
            return isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        case "date":
            return isinstance(value, str) and datetime.fromisoformat(value).tzinfo is not None
        case "ip":
            try:
                return bool(ip_address(str(value)))
            except ValueError:
                return False
        case _:
            return False


def unlike_ecs(document: dict[str, Any]) -> list[str]:
    """Return what is wrong with a document; fields of one's own stand under one's own name."""
    schema = elastic()
    wrong = [name for name in ("@timestamp", "ecs") if name not in document]
    own = {key: item for key, item in document.items() if key != "safeclaw"}
    for name, value in leaves(own):
        kind = schema["fields"].get(name, "")
        items = cast("list[object]", value) if isinstance(value, list) else [value]
        if isinstance(value, list) and not kind.endswith("[]"):
            wrong.append(f"{name}: a list")
        if not all(is_of(item, kind.removesuffix("[]")) for item in items):
            wrong.append(f"{name}: not {kind or 'a field'}")
        wrong += [
            f"{name}: {item}"
            for item in items
            if name in schema["allowed"] and item not in schema["allowed"][name]
        ]
    event = document.get("event", {})
    categories = event.get("category", [])
    expected = {kind for one in categories for kind in schema["expected"].get(one, [])}
    if categories and not set(event["type"]) <= expected:
        wrong.append(f"{categories} with {event['type']}")
    return wrong


def test_ecs_documents_are_of_the_fields_types_and_values_of_ecs(state: Path) -> None:
    documents = [json.loads(line) for line in exported(state, "ecs")]
    there = records(state)
    assert len(documents) == len(there)
    for document, record in zip(documents, there, strict=True):
        assert unlike_ecs(document) == [], document
        assert document["ecs"]["version"].startswith("8.11.")
        outcome = {"allow": "success", "deny": "failure", None: None}[record.decision]
        assert document["event"].get("outcome") == outcome
    started = [one for one in documents if one["event"]["action"] == "shell.execute"]
    assert {one["process"]["executable"] for one in started} == {"/usr/bin/git"}
    assert started[0]["process"]["parent"]["pid"] == 7
    # What is not right is refused.
    file = next(one for one in documents if "file" in one)
    for wrong in (
        {**file, "nonsense": 1},
        {**file, "file": {"path": ["/a"]}},
        {**file, "destination": {"ip": "hmac:00"}},
        {**file, "event": {**file["event"], "kind": "thing"}},
        {**file, "event": {**file["event"], "category": ["file"]}},
        {**file, "event": {**file["event"], "severity": "3"}},
        {key: value for key, value in file.items() if key != "@timestamp"},
    ):
        assert unlike_ecs(wrong), wrong


def test_a_pseudonym_is_no_address(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        journal.append(
            Entry(
                type=RecordType.DECISION,
                action="network.connect",
                decision="deny",
                target={"protocol": "tcp", "address": "hmac:" + "ab" * 32, "port": 443},
            )
        )
    documents = [json.loads(line) for line in exported(tmp_path, "ecs")]
    assert [unlike_ecs(document) for document in documents] == [[], [], []]
    assert "ip" not in documents[1]["destination"]


# ---- OpenTelemetry


def test_otlp_is_read_by_opentelemetrys_own_messages(state: Path) -> None:
    service: Any = importlib.import_module("opentelemetry.proto.collector.logs.v1.logs_service_pb2")
    json_format: Any = importlib.import_module("google.protobuf.json_format")
    found: list[Any] = []
    for line in exported(state, "otlp"):
        request = json_format.Parse(line, service.ExportLogsServiceRequest())
        for resource in request.resource_logs:
            assert {item.key for item in resource.resource.attributes} >= {"service.name"}
            for scope in resource.scope_logs:
                found += scope.log_records
    there = records(state)
    assert len(found) == len(there)
    for log, record in zip(found, there, strict=True):
        values = {item.key: item.value for item in log.attributes}
        assert values["safeclaw.seq"].int_value == record.seq
        assert log.time_unix_nano > 1_700_000_000 * 10**9
        assert log.severity_number in (9, 10, 13, 17)
        if record.decision is not None:
            assert values["safeclaw.decision"].string_value == record.decision
    with pytest.raises(json_format.ParseError):
        json_format.Parse('{"resourceLog": []}', service.ExportLogsServiceRequest())


# ---- CEF


def test_cef_is_read_by_a_parser(state: Path) -> None:
    pycef: Any = importlib.import_module("pycef")
    lines = exported(state, "cef")
    there = records(state)
    assert len(lines) == len(there)
    for line, record in zip(lines, there, strict=True):
        event = pycef.parse(line)
        assert event is not None, line
        assert (event["CEFVersion"], event["DeviceVendor"]) == ("0", "safeclaw")
        assert event["DeviceEventClassID"] == (record.action or record.type)
        assert event["externalId"] == str(record.seq)
        assert event.get("act") == record.decision
        path = (record.target or {}).get("path")
        if isinstance(path, str) and path.isprintable():
            # The parser leaves the escapes of an extension's values as they are.
            assert re.sub(r"\\([\\=|])", r"\1", event["filePath"]) == path, line
    assert pycef.parse(lines[0].replace("|safeclaw|", "||", 1)) is None


# ---- OSCAL


def test_oscal_assessment_results_pass_nists_schema(state: Path) -> None:
    bindings: Any = importlib.import_module("oscal_bindings")
    made = oscal(summarize(state / "journal", Query()), "2026-03-01T00:00:00Z", "intact")
    text = json.dumps(made)
    assert bindings.validate_oscal(text), text
    document = json.loads(text)
    del document["assessment-results"]["results"][0]["reviewed-controls"]
    assert not bindings.validate_oscal(json.dumps(document))
    assert not bindings.validate_oscal(text.replace('"collected"', '"gathered"'))
