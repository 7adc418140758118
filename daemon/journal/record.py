"""One record of the journal: its fields, its one canonical form, its decoding.

The canonical form is RFC 8785 in a narrow profile: sorted ASCII keys, no
floats, integers within 2^53, absent fields left out.  A record has exactly one
encoding; :func:`decode` refuses every other one, so that a line cannot be
rewritten into another that reads the same.

Pure: no clocks, no files.
"""

from __future__ import annotations

import enum
from typing import Final, cast

import msgspec

from safeclaw.errors import JournalError

VERSION: Final = 1
#: ``prev`` of the first record.
NO_PREV: Final = "0" * 64
MAX_INT: Final = 2**53 - 1
#: Longer lines are refused on both sides, so a reader needs bounded memory.
MAX_LINE: Final = 8 << 20


class RecordType(enum.StrEnum):
    """What a record tells.  An unknown type is refused by construction."""

    GENESIS = "genesis"
    SESSION_START = "session_start"
    DECISION = "decision"
    OUTCOME = "outcome"
    VIOLATION = "violation"
    APPROVAL = "approval"
    POLICY_LOAD = "policy_load"
    AGENT_CHANGE = "agent_change"
    KEY_CHANGE = "key_change"
    KILL = "kill"
    LIMIT = "limit"
    CHECKPOINT = "checkpoint"
    ROTATE = "rotate"
    PRUNE = "prune"
    RECOVERY = "recovery"
    GAP = "gap"
    CLOCK_STEP = "clock_step"
    FAULT = "fault"
    EXPORT = "export"
    HEARTBEAT = "heartbeat"
    SESSION_END = "session_end"


class PolicyRef(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The policy a verdict rests on; ``sha256`` is hex."""

    name: str
    sha256: str
    version: str


class Subject(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """Who attempted."""

    exe: str | None = None
    pid: int | None = None
    uid: int | None = None


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What a caller wants recorded; the journal adds place, time and link.

    Text is expected as :func:`safeclaw.policies.model.printable` returns it.
    ``target`` is :func:`safeclaw.policies.model.target_fields`, ``detail``
    plain JSON values without floats.
    """

    type: RecordType
    session: str | None = None
    agent: str | None = None
    attempt: int | None = None
    pid: int | None = None
    uid: int | None = None
    exe: str | None = None
    action: str | None = None
    target: dict[str, object] | None = None
    fingerprint: str | None = None
    decision: str | None = None
    rule: str | None = None
    reason: str | None = None
    policy: PolicyRef | None = None
    enforced_by: str | None = None
    latency_ns: int | None = None
    detail: dict[str, object] | None = None


class Record(
    msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """One line of the journal.  ``prev`` is the hex leaf of the record before.

    ``ts`` is RFC 3339 in UTC with microseconds; ``boottime_us`` is
    CLOCK_BOOTTIME in microseconds (nanoseconds would pass 2^53 after 104 days).
    """

    action: str | None = None
    agent: str | None = None
    attempt: int | None = None
    boot_id: str
    boottime_us: int
    chain: str
    decision: str | None = None
    detail: dict[str, object] | None = None
    enforced_by: str | None = None
    fingerprint: str | None = None
    latency_ns: int | None = None
    policy: PolicyRef | None = None
    prev: str
    reason: str | None = None
    rule: str | None = None
    seq: int
    session: str | None = None
    subject: Subject | None = None
    target: dict[str, object] | None = None
    ts: str
    type: RecordType
    v: int


class RecordError(JournalError):
    """A line is not a record in canonical form."""


_encoder = msgspec.json.Encoder(order="sorted")
_decoder = msgspec.json.Decoder(Record)


def _check(value: object, where: str, depth: int = 0) -> None:
    """Refuse what the profile has no form for."""
    if type(value) is str:  # nearly all are
        return
    match value:
        case str() | bool() | None:
            return
        case int():
            if abs(value) > MAX_INT:
                raise RecordError(f"{where}: an integer beyond 2^53")
        case list() | tuple():
            if depth > 16:
                raise RecordError(f"{where}: nested too deep")
            for item in cast("list[object]", value):
                _check(item, where, depth + 1)
        case dict():
            if depth > 16:
                raise RecordError(f"{where}: nested too deep")
            for key, item in cast("dict[object, object]", value).items():
                if not isinstance(key, str) or not key.isascii():
                    raise RecordError(f"{where}: a key that is not ASCII text")
                if type(item) is not str:
                    _check(item, where, depth + 1)
        case _:
            raise RecordError(f"{where}: a {type(value).__name__} has no canonical form")


def _check_record(record: Record) -> None:
    if not (
        0 <= record.seq <= MAX_INT
        and 0 <= record.boottime_us <= MAX_INT
        and 0 <= (record.attempt or 0) <= MAX_INT
        and 0 <= (record.latency_ns or 0) <= MAX_INT
    ):
        raise RecordError("an integer outside 0..2^53")
    subject = record.subject
    if subject is not None and not (
        0 <= (subject.pid or 0) <= MAX_INT and 0 <= (subject.uid or 0) <= MAX_INT
    ):
        raise RecordError("subject: an integer outside 0..2^53")
    if record.target is not None:
        _check(record.target, "target")
    if record.detail is not None:
        _check(record.detail, "detail")


def escape_surrogates(text: str) -> str:
    r"""Return ``text`` with lone surrogates as ``\xNN``, so that it is UTF-8."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def _escape(value: object) -> object:
    match value:
        case str():
            try:
                return escape_surrogates(value)
            except UnicodeEncodeError:
                return value.encode("ascii", "backslashreplace").decode()
        case dict():
            items = cast("dict[str, object]", value).items()
            return {str(_escape(key)): _escape(item) for key, item in items}
        case list() | tuple():
            return [_escape(item) for item in cast("list[object]", value)]
        case _:
            return value


def encode(record: Record) -> bytes:
    """Return the record's line, without the newline.

    Raises:
        RecordError: a value has no canonical form.
    """
    _check_record(record)
    try:
        line = _encoder.encode(record)
    except UnicodeEncodeError:
        # A stray surrogate must not make an attempt unrecordable.
        plain = _escape(msgspec.to_builtins(record, order="sorted"))
        line = _encoder.encode(msgspec.convert(plain, Record))
    except (TypeError, OverflowError, msgspec.MsgspecError) as error:
        raise RecordError(str(error)) from error
    if len(line) > MAX_LINE:
        raise RecordError(f"a record of {len(line)} bytes; at most {MAX_LINE} are allowed")
    return line


class Template:
    """A record that comes again and again, but for what changes from one to the next.

    ``line`` gives exactly what :func:`encode` would.  The first line is encoded (many
    never come again); for the second the record is taken apart, once.
    """

    __slots__ = ("_once", "_pieces", "_record")

    #: Where the values stand in a line: they follow these keys, in this order.
    _KEYS = ("attempt", "boottime_us", "latency_ns", "prev", "seq", "pid")

    def __init__(self, record: Record) -> None:
        """Take a record that has every field of ``line`` and a canonical form; RecordError."""
        subject = record.subject
        if (
            record.attempt is None
            or record.latency_ns is None
            or subject is None
            or subject.pid is None
        ):
            raise RecordError("not a record for a template")
        _check_record(record)
        self._record = record
        self._pieces: tuple[str, ...] | None = None
        self._once = False

    def _take_apart(self) -> tuple[str, ...]:
        """Return the text around the values; nothing when that cannot be told."""
        whole = encode(self._record)
        text = whole.decode()
        pieces: list[str] = []
        # INVARIANT: keys are sorted; what stands before these is text (in which a quote is
        # escaped) or a policy's name, and "target", which may hold anything, comes after them.
        # "detail" (what is sealed, in base64) has none of these keys.
        for key in self._KEYS:
            head, mark, rest = text.partition(f'"{key}":')
            quote = '"' if rest.startswith('"') else ""
            end = rest.index('"', 1) if quote else _digits(rest)
            pieces.append(head + mark + quote)
            text = rest[end:]
        head, mark, rest = text.rpartition('"ts":"')
        found = (*pieces, head + mark, rest[len(self._record.ts) :])
        record, subject = self._record, self._record.subject
        values = (record.attempt, record.boottime_us, record.latency_ns, record.prev, record.seq)
        pid = subject.pid if subject is not None else None
        texts = [str(value) for value in (*values, pid, record.ts)] + [""]
        made = "".join(part + value for part, value in zip(found, texts, strict=True))
        return found if made.encode() == whole else ()

    def line(
        self,
        *,
        attempt: int,
        boottime_us: int,
        latency_ns: int,
        prev: str,
        seq: int,
        pid: int,
        ts: str,
    ) -> bytes:
        """Return the line with these values; all integers are within 0..2^53.

        Raises:
            RecordError: the line would be too long.
        """
        if self._pieces is None and self._once:
            self._pieces = self._take_apart()
        if not self._pieces:
            self._once = True
            subject = self._record.subject or Subject()
            return encode(
                msgspec.structs.replace(
                    self._record,
                    attempt=attempt,
                    boottime_us=boottime_us,
                    latency_ns=latency_ns,
                    prev=prev,
                    seq=seq,
                    subject=Subject(exe=subject.exe, pid=pid, uid=subject.uid),
                    ts=ts,
                )
            )
        a, b, c, d, e, f, g, h = self._pieces
        text = f"{a}{attempt}{b}{boottime_us}{c}{latency_ns}{d}{prev}{e}{seq}{f}{pid}{g}{ts}{h}"
        return text.encode()


def _digits(text: str) -> int:
    """Return how many digits ``text`` begins with."""
    return len(text) - len(text.lstrip("0123456789"))


def decode(line: bytes) -> Record:
    """Return the record of a line (without newline).

    Raises:
        RecordError: not JSON, not a record, or not in canonical form.
    """
    try:
        record = _decoder.decode(line)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise RecordError(f"not a record: {error}") from error
    if record.v != VERSION:
        raise RecordError(f"record version {record.v}; this chain is version {VERSION}")
    if not _plain(record, line):
        _check_record(record)
    if _encoder.encode(record) != line:
        raise RecordError("not in canonical form")
    return record


def _plain(record: Record, line: bytes) -> bool:
    """Whether a decision, as nearly all are, has nothing that :func:`_check_record` refuses.

    The same rules, for the common case, at half the cost.
    """
    target, subject, attempt, latency = (
        record.target, record.subject, record.attempt, record.latency_ns,
    )  # fmt: skip
    if (
        target is None
        or subject is None
        or attempt is None
        or latency is None
        or record.detail is not None
        or not 0 <= record.seq <= MAX_INT
        or not 0 <= record.boottime_us <= MAX_INT
        or not 0 <= attempt <= MAX_INT
        or not 0 <= latency <= MAX_INT
        or not 0 <= (subject.pid or 0) <= MAX_INT
        or not 0 <= (subject.uid or 0) <= MAX_INT
        or not line.isascii()  # then every key is
    ):
        return False
    for value in target.values():  # noqa: SIM110 - all() costs as much as the rest of this
        if type(value) is not str:
            return False
    return True
