"""C2SP tlog-witness: requests, the rules by which they are judged, and the answers.  Pure.

The rules of trust, in their order (c2sp.org/tlog-witness):

1. A request is an old size, a consistency proof and a checkpoint: else 400.
2. The checkpoint's origin is a log this witness was told of: else 404.
3. The newest key that is known of that log signed it: else 403.
4. The old size is at most the checkpoint's: else 400.
5. The old size is that of the last checkpoint cosigned: else 409, with that size.
6. At the same size, the root is the same: else 409.
7. The proof leads from the last root to this one: else 422.

What passes is what :class:`Accepted` says is to be kept, durably, before the answer.

A chain's key changes from time to time, and a certificate by the old key says so
(docs/audit-format.md).  :func:`judge_key` is for that: it is no part of C2SP's text.
"""

from __future__ import annotations

import base64
import binascii
from typing import Final

import msgspec

from safeclaw.daemon.journal.consistency import consistent
from safeclaw.daemon.journal.cosignature import SIGNATURES_MAX
from safeclaw.daemon.journal.keys import open_certificate
from safeclaw.daemon.journal.merkle import EMPTY_ROOT
from safeclaw.daemon.journal.note import (
    Checkpoint,
    NoteError,
    PublicKey,
    open_checkpoint,
    parse_checkpoint,
)

ADD_CHECKPOINT: Final = "/add-checkpoint"
ADD_KEY: Final = "/add-key"
#: Where the latest cosigned checkpoint of a log is read, its origin percent-encoded.
CHECKPOINT: Final = "/checkpoint/"
SIZE_TYPE: Final = "text/x.tlog.size"
PROOF_MAX: Final = 63
#: Larger than any request with so many hashes and signatures.
REQUEST_MAX: Final = 64 << 10

OK: Final = 200
BAD_REQUEST: Final = 400
FORBIDDEN: Final = 403
NOT_FOUND: Final = 404
CONFLICT: Final = 409
UNPROCESSABLE: Final = 422


class Seen(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a witness knows of one log.  ``note`` is its last checkpoint, cosigned."""

    origin: str
    keys: tuple[str, ...]  # of the epochs, oldest first, as verifier keys
    size: int = 0
    root: str = base64.b64encode(EMPTY_ROOT).decode()
    note: str = ""
    cosigned_at: int = 0

    def newest_key(self) -> PublicKey:
        """Return the key that is in force."""
        return PublicKey.parse(self.keys[-1])


class Request(msgspec.Struct, frozen=True):
    """A request to cosign a checkpoint."""

    old: int
    proof: tuple[bytes, ...]
    note: str
    checkpoint: Checkpoint

    def body(self) -> bytes:
        """Return the request as it is sent."""
        lines = [f"old {self.old}", *(base64.b64encode(step).decode() for step in self.proof)]
        return ("\n".join(lines) + "\n\n" + self.note).encode()


class Refused(msgspec.Struct, frozen=True):
    """No: the HTTP status, and why.  ``size`` is the size known, where that is the answer.

    ``evidence`` marks what the log itself signed and no honest log sends.
    """

    status: int
    why: str
    size: int | None = None
    evidence: bool = False


class Accepted(msgspec.Struct, frozen=True):
    """Yes: what is to be cosigned."""

    checkpoint: Checkpoint
    note: str


def parse_request(body: bytes) -> Request:
    """Return the request that a body says.

    Raises:
        NoteError: it says none.
    """
    try:
        head, found, note = body.decode().partition("\n\n")
    except UnicodeDecodeError as error:
        raise NoteError("the request is not UTF-8") from error
    first, *rest = head.split("\n")
    word, _, digits = first.partition(" ")
    if not found or word != "old" or not digits.isascii() or not digits.isdigit():
        raise NoteError("the request has no old size")
    if str(int(digits[:20])) != digits or len(rest) > PROOF_MAX:
        raise NoteError("the old size is not one, or the proof is too long")
    try:
        proof = tuple(base64.b64decode(line, validate=True) for line in rest)
    except (binascii.Error, ValueError) as error:
        raise NoteError("the proof is not in base64") from error
    if any(len(step) != 32 for step in proof):
        raise NoteError("a hash of the proof is not 32 bytes long")
    text, _, signatures = note.partition("\n\n")
    if signatures.count("\n") > SIGNATURES_MAX:
        raise NoteError("too many signatures")
    return Request(int(digits), proof, note, parse_checkpoint(text + "\n"))


def judge(request: Request, seen: Seen | None) -> Accepted | Refused:
    """Hold a request against the rules 2 to 7 and what was seen of its log."""
    if seen is None:
        return Refused(NOT_FOUND, "this witness was not told of that log")
    checkpoint = request.checkpoint
    try:
        open_checkpoint(request.note, seen.newest_key())
    except NoteError as error:
        return Refused(FORBIDDEN, error.message)
    if request.old > checkpoint.size:
        return Refused(BAD_REQUEST, "the old size is larger than the checkpoint's")
    if request.old != seen.size:
        return Refused(CONFLICT, "the old size is not the last one cosigned", seen.size)
    root = base64.b64decode(seen.root)
    if request.old == checkpoint.size and root != checkpoint.root:
        why = "another tree of the same size was cosigned before"
        return Refused(CONFLICT, why, seen.size, evidence=True)
    if not consistent(seen.size, root, checkpoint.size, checkpoint.root, request.proof):
        why = "the proof does not lead from the last checkpoint to this one"
        return Refused(UNPROCESSABLE, why, evidence=True)
    return Accepted(checkpoint, request.note)


def judge_key(body: bytes, seen: Seen | None) -> PublicKey | Refused:
    """Return the next key, where the newest key known certifies it."""
    if seen is None:
        return Refused(NOT_FOUND, "this witness was not told of that log")
    try:
        certificate = open_certificate(body.decode(), seen.newest_key())
    except (UnicodeDecodeError, NoteError):
        return Refused(FORBIDDEN, "not a certificate by the newest key that is known of that log")
    if certificate.checkpoint.origin != seen.origin or certificate.key.text() in seen.keys:
        return Refused(FORBIDDEN, "the certificate is not for the next key of that log")
    return certificate.key


def origin_of(body: bytes) -> str:
    """Return the first line of a note: the origin it claims; empty when there is none."""
    return body.partition(b"\n")[0].decode("utf-8", "replace")
