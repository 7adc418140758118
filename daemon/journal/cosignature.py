"""Cosignatures: what a witness says of a checkpoint (c2sp.org/tlog-cosignature, Ed25519).

A cosignature is a line of a signed note.  It says that, at its time, the checkpoint's
tree was the largest that the witness had seen of this log, and continued every one it
had seen before.  Pure but for the randomness of a new key, which the caller brings.
"""

from __future__ import annotations

import base64
import binascii
from typing import TYPE_CHECKING, ClassVar, Final, Self

from safeclaw.daemon.journal.note import NoteError, PublicKey

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM: Final = b"\x04"  # a timestamped Ed25519 cosignature, per the signed note specification
#: More signature lines than this make no note: a reader needs bounded work.
SIGNATURES_MAX: Final = 64
_TIME_BYTES: Final = 8
_TIME_MAX: Final = 2**63 - 1


class WitnessKey(PublicKey, frozen=True):
    """A witness's public key: a note verifier of another type."""

    algorithm: ClassVar[bytes] = ALGORITHM
    kind: ClassVar[str] = "witness key"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form that :meth:`text` writes.

        Raises:
            NoteError: it is not such a key.
        """
        key = super().parse(text)
        if not is_name(key.name):
            raise NoteError(f"not a {cls.kind}: a name without spaces and plus signs")
        return key


def is_name(text: str) -> bool:
    """Whether a key may have this name: no spaces, no plus sign, nothing unprintable."""
    return bool(text) and text.isprintable() and not any(c.isspace() or c == "+" for c in text)


class Cosigner:
    """A witness's private key."""

    def __init__(self, name: str, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.seed = seed
        self._key: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = WitnessKey(name, self._key.public_key().public_bytes_raw())

    def cosign(self, text: str, seconds: int) -> str:
        """Return the signature line for a checkpoint's ``text``, seen at ``seconds`` since 1970."""
        signature = self._key.sign(_message(text, seconds))
        body = self.public.hash + seconds.to_bytes(_TIME_BYTES, "big") + signature
        return f"\u2014 {self.public.name} {base64.b64encode(body).decode()}\n"


def _message(text: str, seconds: int) -> bytes:
    return f"cosignature/v1\ntime {seconds}\n{text}".encode()


def cosigned_at(note: str, key: WitnessKey) -> int | None:
    """Return when ``key`` cosigned a note, in seconds since 1970; None when it did not.

    Raises:
        NoteError: the note is malformed, or the cosignature by that key does not hold.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, found, signatures = note.partition("\n\n")
    lines = signatures[:-1].split("\n")
    if not found or not signatures.endswith("\n") or len(lines) > SIGNATURES_MAX:
        raise NoteError("not a signed note")
    seen: int | None = None
    for line in lines:
        dash, _, rest = line.partition(" ")
        name, _, body = rest.partition(" ")
        if dash != "\u2014":
            raise NoteError("not a signed note: bad signature line")
        if name != key.name:
            continue
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NoteError("not a signed note: bad base64") from error
        if raw[:4] != key.hash:
            continue
        seconds = int.from_bytes(raw[4 : 4 + _TIME_BYTES], "big")
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(
                raw[4 + _TIME_BYTES :], _message(text + "\n", seconds)
            )
        except InvalidSignature as error:
            raise NoteError(f"the cosignature of {key.name} does not hold") from error
        if seconds > _TIME_MAX:
            raise NoteError(f"the cosignature of {key.name} has a time that is none")
        seen = seconds if seen is None else max(seen, seconds)
    return seen
