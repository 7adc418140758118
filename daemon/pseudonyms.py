"""Pseudonyms: what a policy marks private is recorded as a keyed HMAC, not by name.

In place of a private word a record has ``hmac:`` and HMAC-SHA256 under the pseudonym
key, the same for the same word, so that records can be counted and compared; the
attempt's fingerprint, a bare hash of what is private, becomes an HMAC as well.  What
was replaced lies encrypted (AES-256-GCM, a key derived from the same one) in the
record's ``detail``, so that whoever holds the key can reveal it, and who destroys the
key has erased it from every copy of the chain (docs/adr/pseudonyms-sealed-in-the-record.md).

The key is ``<state>/keys/pseudonym.key``: never in the journal, nor in any evidence.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import os
from pathlib import Path
from typing import Final, cast

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.record import Entry, Record, Subject, escape_surrogates
from safeclaw.errors import JournalError
from safeclaw.policies.document import Policy
from safeclaw.policies.marks import Marks

KEY_FILE: Final = "pseudonym.key"
PREFIX: Final = "hmac:"
SEALED: Final = "sealed"
KEY_ID: Final = "sealed_by"
_FORM: Final = "safeclaw-pseudonym-1"
#: Of a target that is private as a whole, what still says nothing about whom it is.
_PLAIN_FIELDS: Final = frozenset({"protocol", "port", "own"})


class Key:
    """The pseudonym key, and what is derived from it (HMAC as a PRF, one label each)."""

    def __init__(self, secret: bytes) -> None:
        self._names = self._derived(secret, b"names")
        self._prints = self._derived(secret, b"fingerprints")
        self._seal = self._derived(secret, b"seal")
        self.id = self._derived(secret, b"id").hex()[:16]

    @staticmethod
    def _derived(secret: bytes, label: bytes) -> bytes:
        return hmac.digest(secret, b"safeclaw pseudonym " + label, "sha256")

    def pseudonym(self, word: str) -> str:
        """Return what stands for a word."""
        data = word.encode("utf-8", "surrogatepass")
        return PREFIX + hmac.digest(self._names, data, "sha256").hex()

    def fingerprint(self, fingerprint: str) -> str:
        """Return what stands for a fingerprint."""
        return hmac.digest(self._prints, fingerprint.encode(), "sha256").hex()

    def seal(self, data: bytes) -> str:
        """Return the data encrypted and authenticated, as text."""
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        nonce = os.urandom(12)
        return base64.b64encode(nonce + AESGCM(self._seal).encrypt(nonce, data, None)).decode()

    def open(self, sealed: str) -> bytes:
        """Return what was sealed; JournalError when it was not with this key."""
        from cryptography.exceptions import InvalidTag
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM

        try:
            raw = base64.b64decode(sealed, validate=True)
            return AESGCM(self._seal).decrypt(raw[:12], raw[12:], None)
        except (binascii.Error, ValueError, InvalidTag) as error:
            raise JournalError(
                "what is sealed there was not sealed with this key",
                hint="give --key FILE: the key of the state in which it was recorded",
            ) from error


def read_key(path: Path) -> Key:
    """Return the key in a file.

    Raises:
        JournalError: it is missing, unreadable, or not a key.
    """
    try:
        form, text = path.read_text("ascii").split()
        secret = bytes.fromhex(text)
    except OSError as error:
        raise JournalError(
            f"{path}: {error.strerror}",
            hint="without the pseudonym key nothing can be revealed; give --key FILE",
        ) from error
    except ValueError as error:
        raise JournalError(
            f"{path}: not a pseudonym key", hint="STATE/keys/pseudonym.key is one"
        ) from error
    if form != _FORM or len(secret) != 32:
        raise JournalError(f"{path}: not a pseudonym key", hint="STATE/keys/pseudonym.key is one")
    return Key(secret)


def obtain_key(keys: Path) -> Key:
    """Return the state's key; make it where there is none.

    Raises:
        JournalError: it cannot be made or read.
    """
    path = keys / KEY_FILE
    if not path.exists():
        try:
            content = f"{_FORM} {os.urandom(32).hex()}\n".encode()
            files.replace(path, content, mode=0o600)
            files.sync_directory(keys)
        except OSError as error:
            raise JournalError.of(error, path) from error
    return read_key(path)


class Veils:
    """Puts pseudonyms into the entries of sessions whose policy marks something.

    The journal passes every entry through :meth:`__call__` before anything else sees
    it, so no kind of record can be forgotten.
    """

    def __init__(self, keys: Path) -> None:
        self._keys = keys
        self._key: Key | None = None
        self._marks: dict[str, Marks] = {}

    def cover(self, session: str, policy: Policy, workspace: str, home: str) -> None:
        """Apply a policy's marks to what is recorded of a session from now on.

        Raises:
            JournalError: there is no key, and none can be made.
        """
        if not policy.pseudonymise:
            # A policy that is replaced keeps private what it kept private before.
            return
        if self._key is None:
            self._key = obtain_key(self._keys)
        self._marks[session] = Marks(policy.pseudonymise, workspace, home)

    def fingerprint(self, fingerprint: str) -> str:
        """Return what stands for a fingerprint where it is private."""
        return self._key.fingerprint(fingerprint) if self._key is not None else fingerprint

    def uncover(self, session: str) -> None:
        """Forget a session that has ended."""
        self._marks.pop(session, None)

    def __call__(self, entry: Entry) -> Entry:
        """Return the entry as it is to be recorded."""
        marks = self._marks.get(entry.session or "")
        if marks is None or self._key is None:
            return entry
        return veiled(entry, marks, self._key)


def veiled(entry: Entry, marks: Marks, key: Key) -> Entry:
    """Return the entry with pseudonyms for what ``marks`` names, and the rest as it is."""
    words = _Words(marks, key)
    whole = entry.action is not None and marks.action(entry.action)
    target = words.put(entry.target, whole=whole)
    detail = words.put(entry.detail, whole=whole and entry.target is None)
    exe = words.put(entry.exe)
    reason = words.sentence(entry.reason)
    changed: dict[str, object] = {
        name: value
        for name, value, plain in (
            ("target", target, entry.target),
            ("detail", detail, entry.detail),
            ("exe", exe, entry.exe),
            ("reason", reason, entry.reason),
        )
        if value != plain
    }
    if not changed:
        return entry
    plain = {name: getattr(entry, name) for name in changed}
    if entry.fingerprint is not None and ("target" in changed or "detail" in changed):
        plain["fingerprint"] = entry.fingerprint
        changed["fingerprint"] = key.fingerprint(entry.fingerprint)
    content = escape_surrogates(msgspec.json.encode(plain).decode("utf-8", "surrogateescape"))
    sealed = {SEALED: key.seal(content.encode()), KEY_ID: key.id}
    changed["detail"] = {**cast("dict[str, object]", detail or {}), **sealed}
    return msgspec.structs.replace(entry, **changed)


class _Words:
    """Replaces words, and remembers which, for the sentences that repeat them."""

    def __init__(self, marks: Marks, key: Key) -> None:
        self._marks = marks
        self._key = key
        self._replaced: dict[str, str] = {}

    def put(self, value: object, *, whole: bool = False) -> object:
        """Return a value with pseudonyms in it."""
        match value:
            case str() if value and (whole or self._marks.word(value)):
                pseudonym = self._key.pseudonym(value)
                self._replaced[value] = pseudonym
                return pseudonym
            case dict():
                items = cast("dict[str, object]", value).items()
                return {
                    name: self.put(item, whole=whole and name not in _PLAIN_FIELDS)
                    for name, item in items
                }
            case list() | tuple():
                return [self.put(item, whole=whole) for item in cast("list[object]", value)]
            case _:
                return value

    def sentence(self, text: str | None) -> str | None:
        """Return a sentence without the words that were replaced, or that are private."""
        if text is None:
            return None
        for word in sorted(self._replaced, key=len, reverse=True):
            # A word of one letter stands in every sentence by itself.
            if len(word) > 2:
                text = text.replace(word, self._replaced[word])
        for piece in self._marks.pieces(text):
            text = text.replace(piece, self._key.pseudonym(piece))
        return text


class Revealed(msgspec.Struct, frozen=True):
    """What a record would say without pseudonyms."""

    seq: int
    plain: dict[str, object]


def is_sealed(record: Record) -> bool:
    """Whether a record holds something that can be revealed."""
    return SEALED in (record.detail or {})


def reveal(record: Record, key: Key) -> Revealed:
    """Return the plain words of a record, once its pseudonyms were found to be of them.

    Raises:
        JournalError: nothing is sealed in it, or by another key, or the two do not fit.
    """
    detail = dict(record.detail or {})
    sealed, by = detail.pop(SEALED, None), detail.pop(KEY_ID, None)
    if not isinstance(sealed, str):
        raise JournalError(
            f"record {record.seq}: nothing in it is sealed", hint="it is plain: safeclaw audit show"
        )
    if by != key.id:
        raise JournalError(
            f"record {record.seq}: sealed with another key ({by}); this one is {key.id}",
            hint="give --key FILE: the key of the state in which it was recorded",
        )
    plain = msgspec.json.decode(key.open(sealed), type=dict[str, object])
    subject = record.subject or Subject()
    there = {"target": record.target, "detail": detail, "exe": subject.exe}
    for name, recorded in there.items():
        if name in plain and not _stands_for(recorded, plain[name], key):
            raise JournalError(
                f"record {record.seq}: its pseudonyms are not of what is sealed",
                hint="run: safeclaw audit verify",
            )
    return Revealed(record.seq, plain)


def _stands_for(recorded: object, plain: object, key: Key) -> bool:
    """Whether each word of a record is the plain one, or its pseudonym."""
    match recorded, plain:
        case dict(), dict():
            found = cast("dict[str, object]", recorded)
            given = cast("dict[str, object]", plain)
            return found.keys() == given.keys() and all(
                _stands_for(item, given[name], key) for name, item in found.items()
            )
        case list(), list():
            one, other = cast("list[object]", recorded), cast("list[object]", plain)
            return len(one) == len(other) and all(map(_stands_for, one, other, [key] * len(one)))
        case str(), str():
            return recorded in (plain, key.pseudonym(plain))
        case _:
            return recorded == plain
