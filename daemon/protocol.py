"""What supervisor and broker say to each other: every message, its encoding, no socket.

A session begins with :class:`Hello` and ends with :class:`End`.  Messages that
become records carry a number, counted from 1 without holes: the broker records
a gap where one is missing and refuses a session that repeats one.

Decisions are the hot path: everything but the number, the pid and the latency
is encoded once per kind of attempt, and :func:`decided_packet` puts the two
together into what :class:`Decided` encodes to.
"""

from __future__ import annotations

import struct
from typing import Annotated, Any, cast

import msgspec

from safeclaw.errors import ProtocolError
from safeclaw.policies.document import Parent, Policy
from safeclaw.policies.model import Attempt, Decision, Verdict, fingerprint, target_fields

VERSION = 2
#: The longest message: a policy, or a program with all the arguments Linux allows.
MESSAGE_MAX = 64 * 1024 * 1024
#: More words has no command that Linux starts, nor more parents a policy that is one: what is
#: short on the wire must not be long in memory.
_WORDS_MAX = 1 << 20
_PARENTS_MAX = 4096
#: How long a lease holds after the broker last answered.
LEASE_NS = 500_000_000

JsonObject = dict[str, Any]


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


# ---- supervisor to broker


class Hello(_Message, frozen=True, tag="hello"):
    """Open a session under the policy whose file is given; ``resume`` names a broken one."""

    version: int
    agent: str
    command: Annotated[tuple[str, ...], msgspec.Meta(max_length=_WORDS_MAX)]
    workspace: str
    policy_name: str
    policy_text: bytes
    observe: bool = False
    resume: str | None = None
    policy_parents: Annotated[tuple[Parent, ...], msgspec.Meta(max_length=_PARENTS_MAX)] = ()
    #: A registered agent's API key: then ``agent`` is its name, and the policy is the broker's.
    credential: str = ""
    #: What ``~`` is in the policy.
    home: str = ""


class Decided(_Message, frozen=True, tag="d"):
    """A decision, sent before it is acted upon."""

    number: int
    pid: int
    latency_ns: int
    exe: str
    action: str
    target: JsonObject
    fingerprint: str
    decision: Decision
    rule: str
    reason: str
    enforced_by: str


class Started(_Message, frozen=True, tag="started"):
    """The walls stand; the agent's first instruction comes next."""

    number: int
    walls: JsonObject


class Violated(_Message, frozen=True, tag="violated"):
    """What happened is not what was approved."""

    number: int
    pid: int
    exe: str
    action: str
    target: JsonObject
    fingerprint: str
    reason: str


class Limited(_Message, frozen=True, tag="limited"):
    """The session has come to one of its policy's ``resources:``."""

    number: int
    limit: str
    reason: str


class Adopted(_Message, frozen=True, tag="adopted"):
    """From this number on, the policy of the last :class:`Replace` is in force."""

    number: int
    sha256: str


class Ask(_Message, frozen=True, tag="ask"):
    """Ask a person: the attempt waits for the :class:`Answer` with this ticket."""

    ticket: int
    pid: int
    exe: str
    action: str
    target: JsonObject
    fingerprint: str
    rule: str
    reason: str


class Withdraw(_Message, frozen=True, tag="withdraw"):
    """Nobody waits for the answer any more."""

    ticket: int


class Renew(_Message, frozen=True, tag="renew"):
    """Ask to go on; ``at`` is the supervisor's clock and comes back in the answer."""

    at: int


class Flush(_Message, frozen=True, tag="flush"):
    """Ask for an :class:`Ack` as soon as everything sent before is on disk."""


class End(_Message, frozen=True, tag="end"):
    """The agent has gone, with this exit status (None: never started), for this reason."""

    reason: str
    status: int | None


# ---- broker to supervisor


class Lease(_Message, frozen=True, tag="lease"):
    """The session is open; the policy may be applied by the supervisor itself."""

    session: str
    policy: Policy
    protected: tuple[str, ...]
    chain: str
    broker_pid: int
    #: The policy's own files, where the broker has read them: not to be changed by the agent.
    read_only: tuple[str, ...] = ()
    #: How long the supervisor may look for a broker that has gone, in seconds; 0: not at all.
    reconnect: float = 0.0


class Refused(_Message, frozen=True, tag="refused"):
    """There is no session, or no longer one."""

    message: str
    hint: str | None = None


class Granted(_Message, frozen=True, tag="granted"):
    """The answer to :class:`Renew`."""

    at: int


class Ack(_Message, frozen=True, tag="ack"):
    """Every record up to ``number`` is on disk."""

    number: int


class Fault(_Message, frozen=True, tag="fault"):
    """The journal cannot be written: nothing is allowed from now on."""

    reason: str


class Ended(_Message, frozen=True, tag="ended"):
    """The session's last record is on disk."""


class Asked(_Message, frozen=True, tag="asked"):
    """The question is before people, under this name, for so many seconds."""

    ticket: int
    approval: str
    seconds: float


class Answer(_Message, frozen=True, tag="answer"):
    """What a person (or the lack of one) says to an :class:`Ask`."""

    ticket: int
    decision: Decision
    reason: str


class Replace(_Message, frozen=True, tag="replace"):
    """Another policy is in force; the supervisor says when it has :class:`Adopted` it."""

    policy: Policy


class Kill(_Message, frozen=True, tag="kill"):
    """The kill switch: nothing is allowed from now on, the agent is to be killed."""

    reason: str


ToBroker = (
    Hello | Decided | Started | Violated | Limited | Adopted | Ask | Withdraw | Renew | Flush | End
)
ToSupervisor = Lease | Refused | Granted | Ack | Fault | Ended | Asked | Answer | Replace | Kill

_encoder = msgspec.msgpack.Encoder()
_to_broker: msgspec.msgpack.Decoder[ToBroker] = msgspec.msgpack.Decoder(ToBroker)
_to_supervisor: msgspec.msgpack.Decoder[ToSupervisor] = msgspec.msgpack.Decoder(ToSupervisor)


def encode(message: ToBroker | ToSupervisor) -> bytes:
    """Return the message as bytes."""
    return _encoder.encode(message)


def decode_to_broker(data: bytes | memoryview) -> ToBroker:
    """Return what a supervisor said; BrokerError if it is not a message."""
    try:
        return _to_broker.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a message: {problem}") from problem


def decode_to_supervisor(data: bytes | memoryview) -> ToSupervisor:
    """Return what the broker said; BrokerError if it is not a message."""
    try:
        return _to_supervisor.decode(data)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as problem:
        raise ProtocolError(f"not a message: {problem}") from problem


# A msgpack array of 12: the tag "d", then number, pid and latency at their full
# width so that they always lie at the same place; the rest follows.
_DECIDED_START = b"\x9c\xa1d"
_DECIDED = struct.Struct(">3sBQBIBQ")
_UINT64, _UINT32 = 0xCF, 0xCE


def decided_tail(
    attempt: Attempt,
    verdict: Verdict,
    *,
    exe: str,
    enforced_by: str,
    target: dict[str, object] | None = None,
) -> bytes:
    """Return the part of a decision that is the same each time; ``exe`` is printable text.

    ``target`` are the fields of the attempt's, where they are known.
    """
    if target is None:
        target = target_fields(attempt.target)
    fields = (
        exe,
        attempt.action,
        target,
        fingerprint(attempt, target),
        verdict.decision,
        verdict.rule,
        verdict.reason,
        enforced_by,
    )
    return b"".join(_encoder.encode(field) for field in fields)


def decided_packet(
    tail: bytes,
    number: int,
    pid: int,
    latency_ns: int,
    _pack: Any = _DECIDED.pack,
) -> bytes:
    """Return the message of one decision."""
    packed = _pack(_DECIDED_START, _UINT64, number, _UINT32, pid, _UINT64, latency_ns)
    return cast(bytes, packed + tail)


def split_decided(data: bytes) -> tuple[int, int, int, bytes] | None:
    """Return number, pid, latency and tail of a decision's bytes; None for anything else."""
    if not data.startswith(_DECIDED_START) or len(data) <= _DECIDED.size:
        return None
    _, first, number, second, pid, third, latency = _DECIDED.unpack_from(data)
    if (first, second, third) != (_UINT64, _UINT32, _UINT64):
        return None
    return number, pid, latency, data[_DECIDED.size :]
