"""What a package says of its chain is made from the chain again, and compared.

A signature says who vouches for a file, not that it is true: whoever holds the chain's key
could sign false figures beside a true chain.  What only the host that made the package knew
(its name, the operator, the time, which commit a policy is from) stays its word.  Sentences
are each version's own: another version's are not compared, and the report says so.
"""

from __future__ import annotations

from collections.abc import Set
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Final, cast

import msgspec

from safeclaw.daemon.evidence import controls, history, pages
from safeclaw.daemon.evidence.export import Manifest, export, tool
from safeclaw.daemon.evidence.period import Period, moment
from safeclaw.daemon.evidence.selection import Query
from safeclaw.daemon.evidence.summary import Summary, summarize
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.report import Report
from safeclaw.errors import SafeclawError

#: A document is not read beyond this and twice what it ought to be.
_SMALL: Final = 1 << 20
#: No policy that is loaded is longer.
_POLICY_MAX: Final = 1 << 24
_EPOCH: Final = datetime.fromtimestamp(0, UTC)
#: What of a document is its maker's word, and is not compared.
_WORD: Final = {
    "population.json": {"command", "tool", "host", "operator_uid", "made"},
    "export.manifest.json": {"tool", "made"},
    "verification.json": {"checked", "cannot_exclude", "notes", "owner"},
}


class _Different(SafeclawError):
    """A file does not say what the chain does."""

    def __init__(self, name: str, what: str) -> None:
        super().__init__(what)
        self.name = name


def asked(summary: Summary, found: list[history.Origin], content: dict[str, bytes]) -> Summary:
    """Return a summary with what an auditor would ask about its policies."""
    more = history.questions(summary.policies, found, content)
    return msgspec.structs.replace(summary, drift=[*summary.drift, *more])


def population(manifest: Manifest, summary: Summary, exported: Path) -> dict[str, object]:
    """Return of a population sheet what the chain says."""
    return {
        "query": manifest.query,
        "records": manifest.records,
        "left_out": manifest.left_out,
        "first_seq": manifest.first_seq,
        "last_seq": manifest.last_seq,
        "gaps": summary.events.get("gap", 0),
        "control_totals": {
            "evaluations": summary.evaluations,
            "allowed": summary.allowed,
            "denied": summary.denied,
            "observed_and_let_through": summary.observed,
            "sum_of_sequence_numbers": _sum_of_numbers(exported),
        },
    }


def _sum_of_numbers(path: Path) -> int:
    class Numbered(msgspec.Struct):
        seq: int

    decoder = msgspec.json.Decoder(Numbered)
    with path.open("rb") as stream:
        return sum(decoder.decode(line).seq for line in stream)


def problem(place: Path, chain: Path, report: Report) -> tuple[str, str] | None:
    """Return the first file of an unpacked package that its chain contradicts, and how.

    ``report`` is the verdict on the chain: it is intact.

    Raises:
        OSError: a file cannot be read.
    """
    try:
        _compare(place, chain, report)
    except _Different as error:
        return error.name, error.message + _by(place)
    except FileNotFoundError as error:
        return Path(error.filename).name, "no package is without it"
    return None


def _by(place: Path) -> str:
    """Say whose figures they are, if another version's."""
    try:
        made = _document(place, "population.json").get("tool")
    except (_Different, OSError):
        return ""
    return "" if made == tool() else f" (made by {_short(made)}, checked by {tool()})"


def _compare(place: Path, chain: Path, report: Report) -> None:
    query = _query(_document(place, "population.json"))
    manifest = _same_export(place / "export.jsonl", chain, query)
    _same(place, "export.manifest.json", manifest)
    verdict = {"status": report.status, "verdict": "internally consistent", "finding": None}
    _same(place, "verification.json", verdict)
    summary = summarize(chain, query)
    summary = asked(summary, *_policies(place, [policy.sha256 for policy in summary.policies]))
    by = _by(place)
    _same(place, "summary.json", summary, besides=frozenset({"drift"} if by else ()))
    _same(place, "population.json", population(manifest, summary, place / "export.jsonl"))
    if by:
        sentences = "summary.html, controls.json, oscal.json and summary.json's drift"
        report.unchecked.append(f"that {sentences} say something else than the chain{by}")
        return
    _same(place, "controls.json", controls.mapping(summary))
    made = str(_document(place, "population.json").get("made"))
    _same(place, "oscal.json", controls.oscal(summary, made, "internally consistent"))
    page = pages.html(summary).encode()
    if _begin(place / "summary.html", len(page) + 1) != page:
        raise _Different("summary.html", "it does not show the chain's figures")


def _query(sheet: dict[str, object]) -> Query:
    try:
        fields = msgspec.convert(sheet.get("query"), dict[str, str])
        since, until = (
            moment(fields[name], _EPOCH) if name in fields else None for name in ("since", "until")
        )
        rest = {name: fields[name] for name in fields if name not in ("since", "until")}
        query = Query(Period(since, until), Filter(**rest))
    except (msgspec.ValidationError, TypeError, SafeclawError):
        raise _Different("population.json", "it names no query") from None
    return query


def _same_export(path: Path, chain: Path, query: Query) -> Manifest:
    line = 1
    with path.open("rb") as stream:

        def compare(text: str) -> None:
            nonlocal line
            data = text.encode()
            if stream.read(len(data)) != data:
                raise _Different(path.name, f"line {line} is not what the chain says")
            line += data.count(b"\n")

        manifest = export(chain, query, "jsonl", compare)
        if stream.read(1):
            raise _Different(path.name, f"line {line} is of no record of the period")
    return manifest


def _policies(place: Path, hashes: list[str]) -> tuple[list[history.Origin], dict[str, bytes]]:
    """Return the origins as the package has them, and the texts, which their hashes prove."""
    name = "policies.json"
    try:
        value = _decoded(place, name, _SMALL * (1 + len(hashes)))
        found = msgspec.convert(value, list[history.Origin])
    except msgspec.ValidationError:
        raise _Different(name, "it says nothing of origins") from None
    if [origin.sha256 for origin in found] != hashes:
        raise _Different(name, "they are not the policies in force by the chain")
    content: dict[str, bytes] = {}
    for path in sorted((place / "policies").glob("*.yaml")):
        data = _begin(path, _POLICY_MAX)
        if sha256(data).hexdigest() != path.stem or path.stem not in hashes:
            raise _Different(f"policies/{path.name}", "it is not the policy of that hash")
        content[path.stem] = data
    for origin in found:
        if (origin.kind == "unknown") == (origin.sha256 in content):
            raise _Different(name, f"{origin.sha256[:12]}: {origin.kind}, against its text")
    return found, content


def _document(place: Path, name: str) -> dict[str, object]:
    value = _decoded(place, name, _SMALL)
    return cast("dict[str, object]", value) if isinstance(value, dict) else {}


def _decoded(place: Path, name: str, size: int) -> object:
    data = _begin(place / name, size + 1)
    if len(data) > size:
        raise _Different(name, "it is far longer than what the chain says")
    try:
        return msgspec.json.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        raise _Different(name, "not JSON") from None


def _begin(path: Path, size: int) -> bytes:
    with path.open("rb") as stream:
        return stream.read(size)


def _same(place: Path, name: str, value: object, besides: Set[str] = frozenset()) -> None:
    encoded = msgspec.json.encode(value)
    expected = msgspec.json.decode(encoded)
    said = _decoded(place, name, 2 * len(msgspec.json.format(encoded)) + _SMALL)
    word = _WORD.get(name, set[str]()) | besides
    where = _differs(_without(said, word), _without(expected, word))
    if where is not None:
        raise _Different(name, where)


def _without(value: object, names: Set[str]) -> object:
    if not isinstance(value, dict):
        return value
    fields = cast("dict[str, object]", value)
    return {key: item for key, item in fields.items() if key not in names}


def _differs(said: object, expected: object, at: str = "") -> str | None:
    """Return the first place at which two JSON values differ, and how, in words."""
    if said.__class__ is not expected.__class__ or _is_scalar(expected):
        if said.__class__ is expected.__class__ and said == expected:
            return None
        return f"{at or 'it'} is {_short(said)}, by the chain {_short(expected)}"
    pairs: list[tuple[str, object, object]]
    if isinstance(expected, dict):
        left, right = cast("dict[str, object]", said), cast("dict[str, object]", expected)
        # A figure that an older version did not have is left out in truth where it is nothing.
        keys = left.keys() | {key for key, value in right.items() if value}
        pairs = [(key, left.get(key), right.get(key)) for key in sorted(keys)]
    else:
        one, other = cast("list[object]", said), cast("list[object]", expected)
        if len(one) != len(other):
            return f"{at or 'it'} has {len(one)} entries, by the chain {len(other)}"
        pairs = [(str(n), *pair) for n, pair in enumerate(zip(one, other, strict=True))]
    for key, mine, other_one in pairs:
        found = _differs(mine, other_one, f"{at}.{key}" if at else key)
        if found is not None:
            return found
    return None


def _is_scalar(value: object) -> bool:
    return not isinstance(value, dict | list)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return "an object"
    if isinstance(value, list):
        return "a list"
    text = msgspec.json.encode(value).decode()
    return text if len(text) <= 60 else text[:57] + "..."
