"""What the command line says to a broker besides sessions: requests and replies, no socket.

The same socket carries them as carries sessions, one request at a time; who may
ask what is decided by the broker, by who the kernel says is asking.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeVar

import msgspec

from safeclaw.daemon.protocol import JsonObject
from safeclaw.errors import ProtocolError, UsageError
from safeclaw.policies.model import printable

#: How many of the newest records can be asked for.
LAST_MAX = 100_000


#: What is kept, or recorded, as it is said.
Text = Annotated[str, msgspec.Meta(max_length=4096)]


class _Request(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    pass


class Status(_Request, frozen=True, tag="status"):
    """How the broker is."""


class Sessions(_Request, frozen=True, tag="sessions"):
    """Which sessions run."""


class Kill(_Request, frozen=True, tag="kill"):
    """Stop an agent (or a session, by its id; ``None``: all), and keep it down."""

    agent: Text | None
    why: Text = ""


class Resume(_Request, frozen=True, tag="resume"):
    """Let an agent (``None``: all) run again."""

    agent: str | None
    why: Text = ""


class ListApprovals(_Request, frozen=True, tag="approvals"):
    """What waits for a person."""


class Approve(_Request, frozen=True, tag="approve"):
    """Say yes: ``once``, for the ``session``, or for a ``time`` of so many seconds."""

    id: str
    scope: str = "once"
    seconds: Annotated[int, msgspec.Meta(ge=0, le=3660 * 86400)] = 0
    why: Text = ""


class Refuse(_Request, frozen=True, tag="refuse"):
    """Say no."""

    id: str
    why: Text = ""


class AddAgent(_Request, frozen=True, tag="agent-add"):
    """Register an agent; the reply has its key.  ``lifetime`` is in seconds."""

    name: str
    policy: str
    owner: str
    environment: str
    lifetime: int
    user: str | None = None


class Agents(_Request, frozen=True, tag="agents"):
    """All agents, or one."""

    name: str | None = None


class Review(_Request, frozen=True, tag="agent-review"):
    """The access review, as text; that it was made is recorded with the text's hash."""

    why: Text = ""


class RotateKey(_Request, frozen=True, tag="agent-rotate"):
    """Make a new key; the old ones end after ``overlap`` seconds."""

    name: str
    lifetime: int
    overlap: int = 0


class RevokeKey(_Request, frozen=True, tag="agent-revoke"):
    """Revoke a key, or all, and end the sessions that run on it."""

    name: str
    key: str | None = None
    why: Text = ""


class RemoveAgent(_Request, frozen=True, tag="agent-remove"):
    """Revoke all keys and take the agent off the list."""

    name: str
    why: Text = ""


class SetPolicy(_Request, frozen=True, tag="agent-policy"):
    """Give an agent another policy."""

    name: str
    policy: str


class Reload(_Request, frozen=True, tag="reload"):
    """Read the policies again, as SIGHUP does."""


class PendingPolicies(_Request, frozen=True, tag="policy-pending"):
    """Which policies wait for two people."""


class ApprovePolicy(_Request, frozen=True, tag="policy-approve"):
    """Say yes to a policy that waits, by its whole hash."""

    policy: str
    sha256: str
    why: Text = ""


class RefusePolicy(_Request, frozen=True, tag="policy-refuse"):
    """Say no to a policy that waits."""

    policy: str
    sha256: str
    why: Text = ""


class RollBack(_Request, frozen=True, tag="policy-rollback"):
    """Say which file is to have which text, so that an earlier policy is in force again.

    ``to`` is that policy's hash, its first 12 digits, or ``previous``.  The broker only
    records who wants it: the file is root's to write.
    """

    policy: str
    to: str
    why: Text


class PolicyText(_Request, frozen=True, tag="policy-text"):
    """The text of a policy's file that was in force or waits, by its SHA-256."""

    sha256: str


class Records(_Request, frozen=True, tag="records"):
    """The records that the asker may see: all, or those of their own sessions.

    They are answered by batches (JSON arrays of lines), and by a reply that ends them.
    """

    session: str | None = None
    agent: str | None = None
    action: str | None = None
    decision: str | None = None
    kind: str | None = None
    since: str | None = None
    until: str | None = None
    last: Annotated[int, msgspec.Meta(ge=0, le=LAST_MAX)] | None = None


AgentRequest = AddAgent | RotateKey | RevokeKey | RemoveAgent | SetPolicy
PolicyRequest = PendingPolicies | ApprovePolicy | RefusePolicy | RollBack | PolicyText
Request = (
    Status
    | Sessions
    | Kill
    | Resume
    | ListApprovals
    | Approve
    | Refuse
    | Agents
    | Review
    | Records
    | Reload
    | AgentRequest
    | PolicyRequest
)


class Reply(msgspec.Struct, frozen=True):
    """An answer: ``data`` is JSON; ``error`` and ``hint`` say why there is none."""

    data: Any = None
    error: str | None = None
    hint: str | None = None


#: The longest request: names, and a reason.
MESSAGE_MAX = 64 * 1024
#: A control message begins with a byte that no message of a session begins with.
_MARK = b"{"
_decoder: msgspec.json.Decoder[Request] = msgspec.json.Decoder(Request)
_reply: msgspec.json.Decoder[Reply] = msgspec.json.Decoder(Reply)
_batch: msgspec.json.Decoder[list[msgspec.Raw]] = msgspec.json.Decoder(list[msgspec.Raw])
Value = TypeVar("Value")


def is_request(data: bytes) -> bool:
    """Whether a message is one of these."""
    return data.startswith(_MARK)


def encode(message: Request | Reply) -> bytes:
    """Return the message as bytes; UsageError where somebody typed what is no text."""
    try:
        return msgspec.json.encode(message)
    except UnicodeEncodeError as problem:
        raise UsageError(
            f"{printable(problem.object)}: not UTF-8", hint="names and reasons are text"
        ) from problem


def decode(data: bytes) -> Request:
    """Return a request; BrokerError if it is none."""
    if len(data) > MESSAGE_MAX:
        raise ProtocolError(f"a request of {len(data)} bytes; at most {MESSAGE_MAX} are allowed")
    try:
        return _decoder.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a request: {problem}") from problem


def decode_reply(data: bytes) -> Reply:
    """Return a reply; BrokerError if it is none."""
    try:
        return _reply.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a reply: {problem}") from problem


def decode_batch(data: bytes) -> list[msgspec.Raw]:
    """Return the lines of a batch of records, as they are; BrokerError if it is none."""
    try:
        return _batch.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a batch of records: {problem}") from problem


def target(value: Request) -> JsonObject:
    """Return a request as the target of a record: its fields, never a secret (it has none)."""
    fields: JsonObject = msgspec.to_builtins(value)
    kind = fields.pop("type")
    words = [f"{name}={field}" for name, field in fields.items() if field not in (None, "", False)]
    return {"what": " ".join([kind, *words])}
