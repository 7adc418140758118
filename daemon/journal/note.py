"""C2SP signed notes and checkpoints with Ed25519 (c2sp.org/signed-note, tlog-checkpoint).

A checkpoint commits to a whole tree: origin, size, root.  Pure but for the
randomness of :func:`new_key`.  ``cryptography`` is imported where it is used:
its import costs more than everything else in the journal.
"""

from __future__ import annotations

import base64
import binascii
from hashlib import sha256
from typing import TYPE_CHECKING, ClassVar, Final, Self

import msgspec

from safeclaw.errors import JournalError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

ALGORITHM: Final = b"\x01"  # Ed25519, per the signed note specification


class NoteError(JournalError):
    """A note is malformed or its signature does not hold."""


class PublicKey(msgspec.Struct, frozen=True):
    """A note verifier: ``name`` and 32 raw Ed25519 bytes."""

    name: str
    raw: bytes

    algorithm: ClassVar[bytes] = ALGORITHM
    kind: ClassVar[str] = "public key"

    @property
    def hash(self) -> bytes:
        """Return the four bytes that name this key in a signature line."""
        return sha256(self.name.encode() + b"\n" + self.algorithm + self.raw).digest()[:4]

    def text(self) -> str:
        """Return the key in the note verifier form, ``name+hash+base64``."""
        body = base64.b64encode(self.algorithm + self.raw).decode()
        return f"{self.name}+{self.hash.hex()}+{body}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Read the form that :meth:`text` writes.

        Raises:
            NoteError: it is not such a key.
        """
        name, _, rest = text.strip().partition("+")
        digest, _, body = rest.partition("+")
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NoteError(f"not a {cls.kind}: bad base64") from error
        if not name or raw[:1] != cls.algorithm or len(raw) != 33:
            raise NoteError(
                f"not a {cls.kind} (name+hash+base64, Ed25519, of type {cls.algorithm[0]})"
            )
        key = cls(name, raw[1:])
        if key.hash.hex() != digest:
            raise NoteError(f"the {cls.kind}'s hash does not match it")
        return key


class SigningKey:
    """A private key with the name it signs under."""

    def __init__(self, name: str, seed: bytes) -> None:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        self.seed = seed
        self._key: Ed25519PrivateKey = Ed25519PrivateKey.from_private_bytes(seed)
        self.public = PublicKey(name, self._key.public_key().public_bytes_raw())

    def sign(self, text: str) -> str:
        """Return the signed note of ``text``, which ends with a newline."""
        signature = self.public.hash + self._key.sign(text.encode())
        return f"{text}\n\u2014 {self.public.name} {base64.b64encode(signature).decode()}\n"


class Checkpoint(msgspec.Struct, frozen=True):
    """A commitment to the first ``size`` records; ``root`` is raw."""

    origin: str
    size: int
    root: bytes

    def text(self) -> str:
        """Return the note's text, with its final newline."""
        return f"{self.origin}\n{self.size}\n{base64.b64encode(self.root).decode()}\n"


def open_note(note: str, key: PublicKey) -> str:
    """Return the text of a note whose signature by ``key`` holds.

    Raises:
        NoteError: malformed, not signed by ``key``, or the signature is wrong.
    """
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    text, found, signatures = note.partition("\n\n")
    text += "\n"
    if not found or not signatures.endswith("\n"):
        raise NoteError("not a signed note")
    for line in signatures[:-1].split("\n"):
        dash, _, rest = line.partition(" ")
        name, _, body = rest.partition(" ")
        if dash != "\u2014":
            raise NoteError("not a signed note: bad signature line")
        try:
            raw = base64.b64decode(body, validate=True)
        except (binascii.Error, ValueError) as error:
            raise NoteError("not a signed note: bad base64") from error
        if base64.b64encode(raw).decode() != body:
            raise NoteError("not a signed note: base64 not in canonical form")
        if name != key.name or raw[:4] != key.hash:
            continue
        try:
            Ed25519PublicKey.from_public_bytes(key.raw).verify(raw[4:], text.encode())
        except InvalidSignature as error:
            raise NoteError("the signature does not hold") from error
        return text
    raise NoteError(f"not signed by {key.name}")


def parse_checkpoint(text: str) -> Checkpoint:
    """Return the checkpoint that a note's text (no signatures) says.

    Raises:
        NoteError: it is not a checkpoint in canonical form.
    """
    lines = text.split("\n")
    if len(lines) != 4 or not lines[1].isascii() or not lines[1].isdigit():
        raise NoteError("the note is not a checkpoint")
    try:
        root = base64.b64decode(lines[2], validate=True)
        checkpoint = Checkpoint(lines[0], int(lines[1]), root)
    except (binascii.Error, ValueError) as error:
        raise NoteError("the note is not a checkpoint") from error
    if len(root) != 32 or checkpoint.text() != text:
        raise NoteError("the checkpoint is not in canonical form")
    return checkpoint


def open_checkpoint(note: str, key: PublicKey) -> Checkpoint:
    """Return the checkpoint in a note that ``key`` signed.

    Raises:
        NoteError: as :func:`open_note`, or the text is not a checkpoint.
    """
    return parse_checkpoint(open_note(note, key))
