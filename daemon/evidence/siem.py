"""A record as Elastic Common Schema 8.11, OCSF 1.3 and OpenTelemetry name its fields.  Pure."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from ipaddress import ip_address
from typing import Final, cast

from safeclaw.daemon.evidence.selection import Found
from safeclaw.daemon.journal.record import Record, RecordType
from safeclaw.daemon.journal.text import let_through, summary, target_text

ECS_VERSION: Final = "8.11.0"
OCSF_VERSION: Final = "1.3.0"

_GRAVE: Final = {RecordType.VIOLATION, RecordType.FAULT, RecordType.GAP}
_NOTABLE: Final = {RecordType.KILL, RecordType.RECOVERY, RecordType.CLOCK_STEP, RecordType.PRUNE}


def nanoseconds(ts: str) -> int:
    """Return a record's time in nanoseconds since 1970."""
    moment = datetime.strptime(ts, "%Y-%m-%dT%H:%M:%S.%fZ").replace(tzinfo=UTC)
    return (int(moment.timestamp()) * 1_000_000 + moment.microsecond) * 1000


def severity(record: Record) -> int:
    """Return how grave a record is: 1 nothing, 2 notable, 3 denied, 4 grave (as in OCSF)."""
    if record.type in _GRAVE:
        return 4
    if record.decision == "deny":
        return 2 if let_through(record) else 3
    return 2 if record.type in _NOTABLE else 1


def refused(record: Record) -> bool:
    """Whether an attempt was decided against, and did not happen."""
    return record.decision == "deny" and not let_through(record)


def _without_none(value: Mapping[str, object]) -> dict[str, object]:
    return {key: item for key, item in value.items() if item is not None}


def _subject(record: Record) -> tuple[int | None, int | None, str | None]:
    subject = record.subject
    return (subject.uid, subject.pid, subject.exe) if subject else (None, None, None)


def _text(target: Mapping[str, object], key: str) -> str | None:
    value = target.get(key)
    return value if isinstance(value, str) else None


# ---- Elastic Common Schema

#: What an action is about; what no part of ECS knows, an intent, is a call of a tool's.
_ECS_CATEGORY: Final = {"file": "file", "shell": "process", "network": "network"}
_ECS_INTENT: Final = "api"
#: ECS expects ``allowed`` and ``denied`` of these; what decides on files and programs is an
#: intrusion prevention system to it, too.
_ECS_DECIDES: Final = {"network", _ECS_INTENT}
_ECS_GUARD: Final = "intrusion_detection"
_ECS_TYPE: Final = {
    "file.read": "access",
    "file.write.create": "creation",
    "file.write.delete": "deletion",
    "file.write": "change",
    "shell.execute": "start",
    "network.connect": "connection",
    "network.bind": "connection",
    "network.send": "connection",
}
#: Of records that are no decisions: category and type, where ECS has them.
_ECS_RECORD: Final = {
    RecordType.SESSION_START: ("session", "start"),
    RecordType.SESSION_END: ("session", "end"),
    RecordType.POLICY_LOAD: ("configuration", "change"),
    RecordType.KEY_CHANGE: ("configuration", "change"),
    RecordType.PRUNE: ("configuration", "deletion"),
    RecordType.AGENT_CHANGE: ("iam", "change"),
    RecordType.APPROVAL: ("iam", "info"),
    RecordType.KILL: ("process", "end"),
    RecordType.VIOLATION: (_ECS_GUARD, "info"),
    RecordType.LIMIT: (_ECS_GUARD, "info"),
}


def _ecs_kinds(record: Record) -> tuple[list[str], list[str]]:
    """Return ``event.category`` and ``event.type``: only such as ECS expects together."""
    if record.decision is None:
        category, kind = _ECS_RECORD.get(record.type, (None, "info"))
        return [category] if category else [], [kind]
    action = record.action or ""
    category = _ECS_CATEGORY.get(action.partition(".")[0], _ECS_INTENT)
    types = [kind for start, kind in _ECS_TYPE.items() if action.startswith(start)][:1]
    decided = "denied" if refused(record) else "allowed"
    guard = [] if category in _ECS_DECIDES else [_ECS_GUARD]
    return [category, *guard], [*(types or ["info"]), decided]


def _ecs_process(record: Record) -> dict[str, object]:
    """Return who attempted; where a program starts, that program, and who starts it."""
    _, pid, exe = _subject(record)
    target = record.target or {}
    program = _text(target, "program")
    if program is None:
        return _without_none({"pid": pid, "executable": exe})
    argv = target.get("argv")
    value: dict[str, object] = {"executable": program, "name": program.rpartition("/")[2]}
    if isinstance(argv, list | tuple):
        value["args"] = list(cast("list[object]", argv))
    parent = _without_none({"pid": pid, "executable": exe})
    return {**value, "parent": parent} if parent else value


def _outcome(record: Record) -> str | None:
    if record.decision is None:
        return None
    return "failure" if refused(record) else "success"


def _ip(address: str) -> str | None:
    """Return an address, but no pseudonym: a field of type ip takes nothing else."""
    try:
        return str(ip_address(address))
    except ValueError:
        return None


def ecs(found: Found) -> dict[str, object]:
    """Return a record as an ECS document; what has no field there is under ``safeclaw``."""
    record = found.record
    uid, _, _ = _subject(record)
    target = record.target or {}
    category, types = _ecs_kinds(record)
    event: dict[str, object] = {
        "kind": "alert" if record.type is RecordType.VIOLATION else "event",
        "category": category or None,
        "type": types,
        "action": record.action or str(record.type),
        "outcome": _outcome(record),
        "sequence": record.seq,
        "id": found.leaf.hex(),
        "provider": "safeclaw",
        "reason": record.reason,
        "severity": severity(record),
    }
    value: dict[str, object] = {
        "@timestamp": record.ts,
        "ecs": {"version": ECS_VERSION},
        "event": _without_none(event),
        "message": summary(record),
        "safeclaw": _without_none(
            {
                "type": str(record.type),
                "chain": record.chain,
                "prev": record.prev,
                "session": record.session,
                "attempt": record.attempt,
                "agent": record.agent,
                "decision": record.decision,
                "enforced_by": record.enforced_by,
                "fingerprint": record.fingerprint,
                "policy_sha256": record.policy.sha256 if record.policy else None,
                "target": target_text(record.target) if record.target else None,
            }
        ),
    }
    process = _ecs_process(record)
    if process:
        value["process"] = process
    if uid is not None:
        value["user"] = {"id": str(uid)}
    if record.rule is not None:
        policy = record.policy
        value["rule"] = _without_none(
            {
                "name": record.rule,
                "ruleset": policy.name if policy else None,
                "version": policy.version if policy else None,
            }
        )
    path = _text(target, "path")
    if path is not None:
        value["file"] = {"path": path, "name": path.rpartition("/")[2] or "/"}
    address = _text(target, "address")
    if address is not None:
        value["destination"] = _without_none(
            {"address": address, "ip": _ip(address), "port": target.get("port")}
        )
    return value


# ---- Open Cybersecurity Schema Framework

_OCSF_FILE: Final = {
    "file.read": 2,
    "file.write.create": 1,
    "file.write.modify": 3,
    "file.write.delete": 4,
    "file.write.rename": 5,
    "file.write.link": 1,
    "file.write.metadata": 6,
    "file.write": 3,
}
_OCSF_SEVERITY: Final = {1: "Informational", 2: "Low", 3: "Medium", 4: "High"}


def ocsf(found: Found) -> dict[str, object]:
    """Return a record as an OCSF event: file, process or network activity, else a base event."""
    record = found.record
    target = record.target or {}
    action = record.action or ""
    grade = severity(record)
    event: dict[str, object] = {
        "time": nanoseconds(record.ts) // 1_000_000,
        "severity_id": grade,
        "severity": _OCSF_SEVERITY[grade],
        "message": summary(record),
        "metadata": {
            "version": OCSF_VERSION,
            "product": {"name": "safeclaw", "vendor_name": "safeclaw"},
            "uid": found.leaf.hex(),
            "sequence": record.seq,
            "log_name": record.chain,
            "original_time": record.ts,
        },
        "unmapped": _without_none(
            {
                "type": str(record.type),
                "action": record.action,
                "agent": record.agent,
                "session": record.session,
                "attempt": record.attempt,
                "decision": record.decision,
                "rule": record.rule,
                "reason": record.reason,
                "prev": record.prev,
                "fingerprint": record.fingerprint,
            }
        ),
    }
    path, address = _text(target, "path"), _text(target, "address")
    program = _text(target, "program")
    if action.startswith("file.") and path is not None:
        number = next(
            (number for start, number in _OCSF_FILE.items() if action.startswith(start)), 99
        )
        _system(event, record, 1001, number)
        event["file"] = {"name": path.rpartition("/")[2] or "/", "path": path, "type_id": 0}
        to = _text(target, "to")
        if to is not None:
            event["file_result"] = {"name": to.rpartition("/")[2] or "/", "path": to, "type_id": 0}
    elif action == "shell.execute" and program is not None:
        _system(event, record, 1007, 1)
        name = program.rpartition("/")[2]
        _, pid, _ = _subject(record)
        event["process"] = {
            "name": name,
            "cmd_line": target_text(target),
            "file": {"name": name, "path": program, "type_id": 1},
            # execve(2) keeps the process; without it, the attempt tells one from another.
            **({"pid": pid} if pid else {"uid": f"{record.session}/{record.attempt}"}),
        }
    elif action.startswith("network.") and address is not None:
        number = 7 if action == "network.bind" else 6 if action == "network.send" else 1
        _classed(event, 4, 4001, number)
        event["dst_endpoint"] = _without_none({"ip": address, "port": target.get("port")})
        event["connection_info"] = {
            "direction_id": 2,
            "protocol_name": str(target.get("protocol", "unknown")),
        }
    else:
        # The base event has no place for a decision; what it was is under "unmapped".
        _classed(event, 0, 0, 99)
        event["activity_name"] = str(record.type)
        return event
    _controlled(event, record)
    return event


def _controlled(event: dict[str, object], record: Record) -> None:
    """Add the profile "security control": what was decided, by which policy."""
    metadata = event["metadata"]
    assert isinstance(metadata, dict)
    metadata["profiles"] = ["security_control"]
    if record.decision is None:
        return
    allowed = not refused(record)
    event["action_id"], event["action"] = (1, "Allowed") if allowed else (2, "Denied")
    event["disposition_id"], event["disposition"] = (1, "Allowed") if allowed else (2, "Blocked")
    if let_through(record):
        event["disposition_id"], event["disposition"] = 17, "Logged"
    event["status_id"], event["status"] = (1, "Success") if allowed else (2, "Failure")
    authorization: dict[str, object] = {"decision": record.decision}
    if record.policy is not None:
        authorization["policy"] = {
            "name": record.policy.name,
            "uid": record.policy.sha256,
            "version": record.policy.version,
        }
    event["authorizations"] = [authorization]


def _classed(event: dict[str, object], category: int, kind: int, activity: int) -> None:
    event["category_uid"], event["class_uid"] = category, kind
    event["activity_id"], event["type_uid"] = activity, kind * 100 + activity


def _system(event: dict[str, object], record: Record, kind: int, activity: int) -> None:
    """What every event of the category System Activity has."""
    _classed(event, 1, kind, activity)
    uid, pid, exe = _subject(record)
    process: dict[str, object] = _without_none({"pid": pid})
    if exe is not None:
        name = exe.rpartition("/")[2]
        process |= {"name": name, "file": {"name": name, "path": exe, "type_id": 1}}
    actor: dict[str, object] = {"app_name": record.agent or "unknown"}
    if process:
        actor["process"] = process
    if uid is not None:
        actor["user"] = {"uid": str(uid)}
    event["actor"] = actor
    event["device"] = {"type_id": 0, "uid": record.boot_id}


# ---- OpenTelemetry

_OTLP_SEVERITY: Final = {1: (9, "INFO"), 2: (10, "INFO2"), 3: (13, "WARN"), 4: (17, "ERROR")}


def otlp_record(found: Found) -> dict[str, object]:
    """Return a record as an OTLP LogRecord in JSON."""
    record = found.record
    uid, pid, exe = _subject(record)
    values: dict[str, object] = _without_none(
        {
            "event.name": f"safeclaw.{record.type}",
            "safeclaw.seq": record.seq,
            "safeclaw.entry_hash": found.leaf.hex(),
            "safeclaw.prev": record.prev,
            "safeclaw.session": record.session,
            "safeclaw.attempt": record.attempt,
            "safeclaw.agent": record.agent,
            "safeclaw.action": record.action,
            "safeclaw.target": target_text(record.target) if record.target else None,
            "safeclaw.decision": record.decision,
            "safeclaw.rule": record.rule,
            "safeclaw.reason": record.reason,
            "safeclaw.policy.sha256": record.policy.sha256 if record.policy else None,
            "process.pid": pid,
            "process.executable.path": exe,
            "user.id": str(uid) if uid is not None else None,
        }
    )
    number, text = _OTLP_SEVERITY[severity(record)]
    stamp = str(nanoseconds(record.ts))
    return {
        "timeUnixNano": stamp,
        "observedTimeUnixNano": stamp,
        "severityNumber": number,
        "severityText": text,
        "body": {"stringValue": summary(record)},
        "attributes": [
            {
                "key": key,
                # 64-bit integers are strings in OTLP's JSON
                "value": {"intValue": str(value)}
                if isinstance(value, int)
                else {"stringValue": str(value)},
            }
            for key, value in values.items()
        ],
    }
