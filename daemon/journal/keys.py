"""Epochs: one signing key after another, each certified by the one before it.

A certificate is a checkpoint with one more line, ``key <public key>``, signed
by the old key (which vouches) and by the new one (which shows that its private
half is held).  It states the size and root at which the epoch begins, so that a
later key cannot speak for the records before it.  The old private key is erased
once the certificate is on disk.

``<state>/keys/``: ``journal.key``, while a roll is under way ``journal.key.next``,
and ``journal.pub``: every public key so far, oldest first, one a line.
``<state>/journal/keyring``: the certificates, for chains whose first segments
were pruned.
"""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.note import (
    Checkpoint,
    NoteError,
    PublicKey,
    SigningKey,
    open_note,
    parse_checkpoint,
)
from safeclaw.errors import JournalError

NEXT_KEY: Final = "journal.key.next"
KEYRING: Final = "keyring"
_KEY_LINE: Final = "key "


class Certificate(msgspec.Struct, frozen=True):
    """Where an epoch begins, and the key it is signed with from there on."""

    checkpoint: Checkpoint
    key: PublicKey


def certify(old: SigningKey, new: SigningKey, checkpoint: Checkpoint) -> str:
    """Return the certificate for ``new``, signed by both keys."""
    text = f"{checkpoint.text()}{_KEY_LINE}{new.public.text()}\n"
    # Both notes are text, an empty line, and one signature line.
    return old.sign(text) + new.sign(text)[len(text) + 1 :]


def open_certificate(note: str, old: PublicKey) -> Certificate:
    """Return what a certificate says, after both signatures were found to hold.

    Raises:
        NoteError: malformed, or one of the signatures does not hold.
    """
    text = open_note(note, old)
    head, line, rest = text.partition(f"\n{_KEY_LINE}")
    if not line or not rest.endswith("\n") or rest.count("\n") != 1:
        raise NoteError("not a key certificate")
    certificate = Certificate(parse_checkpoint(head + "\n"), PublicKey.parse(rest[:-1]))
    if certificate.key.text() != rest[:-1] or certificate.key.name != old.name:
        raise NoteError("the certificate is for another name's key")
    open_note(note, certificate.key)
    return certificate


class Keyring(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The key of the genesis, and every certificate since."""

    genesis: str
    certificates: tuple[str, ...] = ()

    def keys(self) -> list[PublicKey]:
        """Return the keys, oldest first, after every certificate was checked.

        Raises:
            NoteError: one of them does not hold.
        """
        found = [PublicKey.parse(self.genesis)]
        size = 0
        for note in self.certificates:
            certificate = open_certificate(note, found[-1])
            if certificate.checkpoint.origin != found[0].name or certificate.checkpoint.size < size:
                raise NoteError("the certificates do not follow each other")
            size = certificate.checkpoint.size
            found.append(certificate.key)
        return found


def read_keyring(directory: Path) -> Keyring | None:
    """Return the keyring beside a chain; None where no key was ever rolled.

    Raises:
        JournalError: it cannot be read, or is not a keyring.
    """
    path = directory / KEYRING
    try:
        return msgspec.json.decode(path.read_bytes(), type=Keyring)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise JournalError.of(error, path) from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise JournalError(
            f"{path}: not a keyring",
            hint="run: safeclaw audit verify; a backup of the state has it whole",
        ) from error


def read_public_keys(path: Path) -> list[PublicKey]:
    """Return the keys of a file, one a line, oldest first.

    Raises:
        JournalError: unreadable, or not keys.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
        found = [PublicKey.parse(line) for line in lines if line.strip()]
    except OSError as error:
        raise JournalError(
            f"{path}: {error.strerror}", hint="safeclaw audit keys export writes one"
        ) from error
    except (UnicodeDecodeError, NoteError) as error:
        raise JournalError(
            f"{path}: not a public key", hint="safeclaw audit keys export writes one"
        ) from error
    if not found:
        raise JournalError(
            f"{path}: no public key in it", hint="safeclaw audit keys export writes one"
        )
    return found


def stage(keys: Path, name: str) -> SigningKey:
    """Make the next key, on disk before anything names it."""
    key = SigningKey(name, os.urandom(32))
    files.replace(keys / NEXT_KEY, f"{name} {key.seed.hex()}\n".encode(), mode=0o600)
    files.sync_directory(keys)
    return key


def install(directory: Path, keys: Path, certificate: str) -> None:
    """Put the staged key, now certified in the chain, in the old one's place; erase that.

    Can be done again after a crash at any point.

    Raises:
        OSError: it could not be done; the staged key stays for the next start.
    """
    try:
        known = read_keyring(directory)
        if known is None:
            known = Keyring(read_public_keys(keys / files.PUBLIC_KEY)[0].text())
    except JournalError as error:
        raise OSError(errno.EIO, error.message) from error
    if certificate not in known.certificates:
        known = Keyring(known.genesis, (*known.certificates, certificate))
        files.replace(directory / KEYRING, msgspec.json.encode(known), mode=0o640)
        files.sync_directory(directory)
    ring = known.keys()
    text = "".join(f"{key.text()}\n" for key in ring)
    files.replace(keys / files.PUBLIC_KEY, text.encode(), mode=0o644)
    if (keys / NEXT_KEY).exists():
        _overwrite(keys / files.PRIVATE_KEY)
        os.rename(keys / NEXT_KEY, keys / files.PRIVATE_KEY)
    files.sync_directory(keys)


def finish(directory: Path, keys: Path) -> None:
    """Complete, or undo, a roll that a crash interrupted.

    Raises:
        JournalError: it cannot be.
    """
    path = keys / NEXT_KEY
    try:
        if not path.exists():
            return
        certificate = None
        # Zeros are what a crash left of undoing it.
        if any(path.read_bytes()):
            staged = files.load_key(keys, NEXT_KEY).public
            certificate = _certificate_for(directory, staged)
        if certificate is not None:
            install(directory, keys, certificate)
        else:
            _overwrite(path)
            path.unlink()
            files.sync_directory(keys)
    except OSError as error:
        raise JournalError.of(error, error.filename or keys) from error


def _certificate_for(directory: Path, key: PublicKey) -> str | None:
    """Return the certificate by which the chain took ``key``, if it did."""
    from safeclaw.daemon.journal import reader
    from safeclaw.daemon.journal.filter import Filter

    for record in reader.read(directory, Filter(type="key_change")):
        if record.detail is not None and record.detail.get("public_key") == key.text():
            return str(record.detail.get("certificate"))
    return None


def _overwrite(path: Path) -> None:
    """Write zeros over a private key.

    SAFETY: the file system may keep the old block all the same (copy on write, a
    worn flash cell); docs/audit-format.md says so.  The name is gone in any case.
    """
    with contextlib.suppress(FileNotFoundError):
        fd = os.open(path, os.O_WRONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        try:
            os.pwrite(fd, b"\0" * os.fstat(fd).st_size, 0)
            os.fsync(fd)
        finally:
            os.close(fd)
