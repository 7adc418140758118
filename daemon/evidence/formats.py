"""Records in the formats that other tools read.  Pure: text in, text out.

``json`` and ``jsonl`` carry the chain's own lines, byte for byte; the others are
translations, each with the record's hash, so that a row leads back to its line.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Callable
from typing import Final

import msgspec

from safeclaw.daemon.evidence.selection import Found
from safeclaw.daemon.evidence.siem import ecs, ocsf, otlp_record, severity
from safeclaw.daemon.journal.text import let_through, safe, summary, target_text

#: How many records one line of OTLP holds.
_BATCH: Final = 256
#: What CEF wants escaped in an extension's value.
_EXTENSION: Final = re.compile(r"([\\=])")

COLUMNS: Final = (
    "seq", "ts", "type", "session", "attempt", "agent", "uid", "pid", "exe", "action", "target",
    "decision", "rule", "reason", "policy", "policy_version", "policy_sha256", "fingerprint",
    "enforced_by", "latency_ns", "prev", "entry_hash",
)  # fmt: skip


class Writer:
    """Turns records into one document, piece by piece."""

    def begin(self) -> str:
        """Return what stands before the first record."""
        return ""

    def row(self, found: Found) -> str:
        """Return a record's text, or nothing yet."""
        raise NotImplementedError

    def end(self, manifest: dict[str, object]) -> str:
        """Return what stands after the last record."""
        del manifest
        return ""


class JsonLines(Writer):
    """One line of the chain a line."""

    def row(self, found: Found) -> str:
        """Return the line itself."""
        return found.line.decode() + "\n"


class Json(Writer):
    """One document: the records, and the manifest with them."""

    def __init__(self) -> None:
        self._first = True

    def begin(self) -> str:
        """Open the list."""
        return '{"records":['

    def row(self, found: Found) -> str:
        """Return the line itself, as the next of the list."""
        comma, self._first = ("\n" if self._first else ",\n"), False
        return comma + found.line.decode()

    def end(self, manifest: dict[str, object]) -> str:
        """Close the list, and say what it is."""
        return '\n],"manifest":' + msgspec.json.encode(manifest).decode() + "}\n"


class Csv(Writer):
    """A table.  What a spreadsheet would take for a formula begins with an apostrophe."""

    def begin(self) -> str:
        """Return the header."""
        return _csv_row(COLUMNS)

    def row(self, found: Found) -> str:
        """Return one row."""
        record = found.record
        subject, policy = record.subject, record.policy
        values: dict[str, object] = {
            "seq": record.seq,
            "ts": record.ts,
            "type": record.type,
            "session": record.session,
            "attempt": record.attempt,
            "agent": record.agent,
            "uid": subject.uid if subject else None,
            "pid": subject.pid if subject else None,
            "exe": subject.exe if subject else None,
            "action": record.action,
            "target": target_text(record.target) if record.target else None,
            "decision": record.decision,
            "rule": record.rule,
            "reason": record.reason,
            "policy": policy.name if policy else None,
            "policy_version": policy.version if policy else None,
            "policy_sha256": policy.sha256 if policy else None,
            "fingerprint": record.fingerprint,
            "enforced_by": record.enforced_by,
            "latency_ns": record.latency_ns,
            "prev": record.prev,
            "entry_hash": found.leaf.hex(),
        }
        return _csv_row([_cell(values[name]) for name in COLUMNS])


def _cell(value: object) -> str:
    text = "" if value is None else safe(str(value))
    # SAFETY: a spreadsheet runs a cell that begins so; agents choose paths and arguments.
    return "'" + text if text[:1] in "=+-@\t\r|%" and text else text


def _csv_row(cells: tuple[str, ...] | list[str]) -> str:
    out = io.StringIO()
    csv.writer(out, lineterminator="\r\n").writerow(cells)
    return out.getvalue()


class Cef(Writer):
    """ArcSight's Common Event Format, version 0, one event a line."""

    def row(self, found: Found) -> str:
        """Return one event."""
        record = found.record
        subject, target = record.subject, record.target or {}
        fields: list[tuple[str, object]] = [
            ("rt", siem_time(record.ts)),
            ("externalId", record.seq),
            ("act", "observe" if let_through(record) else record.decision),
            ("suser", record.agent),
            ("suid", subject.uid if subject else None),
            ("spid", subject.pid if subject else None),
            ("sproc", subject.exe if subject else None),
            ("filePath", target.get("path")),
            ("dproc", target.get("program")),
            ("dst", target.get("address")),
            ("dpt", target.get("port")),
            ("reason", record.reason),
            ("cs1Label", "rule"),
            ("cs1", record.rule),
            ("cs2Label", "policySha256"),
            ("cs2", record.policy.sha256 if record.policy else None),
            ("cs3Label", "session"),
            ("cs3", record.session),
            ("cs4Label", "entryHash"),
            ("cs4", found.leaf.hex()),
            ("cs5Label", "chain"),
            ("cs5", record.chain),
            ("msg", summary(record)),
        ]
        present = {key: value for key, value in fields if value is not None}
        for key in list(present):
            if key.endswith("Label") and key[:-5] not in present:
                del present[key]
        name = record.action or record.type
        head = "|".join(
            re.sub(r"([\\|])", r"\\\1", safe(str(part)))
            for part in ("safeclaw", "safeclaw", "1", name, f"{record.type} {name}")
        )
        extension = " ".join(
            f"{key}={_EXTENSION.sub(_escaped, safe(str(value)))}" for key, value in present.items()
        )
        return f"CEF:0|{head}|{severity(record) * 2}|{extension}\n"


def _escaped(match: re.Match[str]) -> str:
    return "\\" + match[1]


def siem_time(ts: str) -> int:
    """Return a record's time in milliseconds since 1970."""
    from safeclaw.daemon.evidence.siem import nanoseconds

    return nanoseconds(ts) // 1_000_000


class Translated(Writer):
    """One JSON object a line, as ``translate`` makes it."""

    def __init__(self, translate: Callable[[Found], dict[str, object]]) -> None:
        self._translate = translate

    def row(self, found: Found) -> str:
        """Return one event."""
        return msgspec.json.encode(self._translate(found)).decode() + "\n"


class Otlp(Writer):
    """OpenTelemetry logs in OTLP's JSON, one request a line."""

    def __init__(self) -> None:
        self._records: list[dict[str, object]] = []
        self._chain = ""

    def row(self, found: Found) -> str:
        """Return a request when enough records have come together."""
        self._chain = found.record.chain
        self._records.append(otlp_record(found))
        return self._request() if len(self._records) >= _BATCH else ""

    def end(self, manifest: dict[str, object]) -> str:
        """Return the last request."""
        del manifest
        return self._request() if self._records else ""

    def _request(self) -> str:
        def attribute(key: str, value: str) -> dict[str, object]:
            return {"key": key, "value": {"stringValue": value}}

        resource = [attribute("service.name", "safeclaw"),
                    attribute("safeclaw.chain", self._chain)]  # fmt: skip
        records, self._records = self._records, []
        request = {
            "resourceLogs": [
                {
                    "resource": {"attributes": resource},
                    "scopeLogs": [{"scope": {"name": "safeclaw.journal"}, "logRecords": records}],
                }
            ]
        }
        return msgspec.json.encode(request).decode() + "\n"


FORMATS: Final[dict[str, Callable[[], Writer]]] = {
    "json": Json,
    "jsonl": JsonLines,
    "csv": Csv,
    "cef": Cef,
    "ecs": lambda: Translated(ecs),
    "ocsf": lambda: Translated(ocsf),
    "otlp": Otlp,
}
