"""What a witness keeps: its key, one file for each log, and what a log should not have signed.

``witness.key`` (name and seed), ``witness.pub``, ``logs/``, ``refused/``.  Every change is
made under a lock and is on disk before anyone hears of it, whichever process makes it.
A witness whose directory was lost is a new witness: it must not go on under its old key.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Generator
from hashlib import sha256
from pathlib import Path
from typing import Final

import msgspec

from safeclaw.daemon.journal import files
from safeclaw.daemon.journal.cosignature import Cosigner, is_name
from safeclaw.daemon.journal.note import PublicKey
from safeclaw.daemon.witness import protocol
from safeclaw.daemon.witness.protocol import Accepted, Refused, Seen
from safeclaw.errors import JournalError

KEY: Final = "witness.key"
PUBLIC_KEY: Final = "witness.pub"
_LOCK: Final = "lock"
#: How many requests that no honest log sends are kept for a person to look at.
_REFUSED_MAX: Final = 100


class Store:
    """One witness's directory."""

    def __init__(self, directory: Path) -> None:
        """Open a directory that :meth:`make` made.  JournalError."""
        self.directory = directory
        self._threads = threading.Lock()
        if not (directory / KEY).exists():
            raise JournalError(
                f"{directory}: no witness here", hint="safeclaw audit witness init --name NAME"
            )
        key = files.load_key(directory, KEY)
        self.cosigner = Cosigner(key.public.name, key.seed)

    @classmethod
    def make(cls, directory: Path, name: str) -> Store:
        """Make a witness with a new key.

        Raises:
            JournalError: there is one already, the name is none, or it cannot be written.
        """
        if not is_name(name):
            raise JournalError(
                "a witness's name has neither spaces nor a plus sign",
                hint="such as witness.example.com/w1",
            )
        files.make_directory(directory)
        files.make_directory(directory / "logs")
        files.make_directory(directory / "refused")
        if (directory / KEY).exists():
            raise JournalError(
                f"{directory}: there is a witness already", hint="safeclaw audit witness show"
            )
        cosigner = Cosigner(name, os.urandom(32))
        try:
            files.replace(
                directory / PUBLIC_KEY, f"{cosigner.public.text()}\n".encode(), mode=0o644
            )
            files.replace(directory / KEY, f"{name} {cosigner.seed.hex()}\n".encode(), mode=0o600)
            files.sync_directory(directory)
        except OSError as error:
            raise JournalError.of(error, directory) from error
        return cls(directory)

    def add_log(self, given: list[PublicKey]) -> Seen:
        """Take up a log by its public keys, oldest first.

        Raises:
            JournalError: it is known already under other keys, or cannot be written.
        """
        origin = given[0].name
        if any(key.name != origin for key in given):
            raise JournalError(
                "these are the keys of more than one chain",
                hint="one file for each: safeclaw audit keys export",
            )
        with self._locked():
            known = self._load(origin)
            wanted = tuple(key.text() for key in given)
            if known is not None and known.keys != wanted:
                raise JournalError(
                    f"{origin} is known already, with other keys",
                    hint="a chain hands its new keys over by itself: safeclaw audit witness push",
                )
            seen = known or Seen(origin, wanted)
            self._save(seen)
        return seen

    def logs(self) -> list[Seen]:
        """Return what is known of every log.  JournalError."""
        with self._locked():
            paths = sorted((self.directory / "logs").glob("*.json"))
            return [self._read(path) for path in paths]

    def seen(self, origin: str) -> Seen | None:
        """Return what is known of one log.  JournalError."""
        with self._locked():
            return self._load(origin)

    def add_checkpoint(self, request: protocol.Request, body: bytes) -> str | Refused:
        """Judge a request; return the cosignature's line once what was seen is on disk.

        Raises:
            JournalError: it cannot be kept, so nothing was cosigned.
        """
        with self._locked():
            seen = self._load(request.checkpoint.origin)
            answer = protocol.judge(request, seen)
            if isinstance(answer, Refused):
                if answer.evidence:
                    self._keep(body)
                return answer
            assert seen is not None
            return self._cosign(seen, answer)

    def _cosign(self, seen: Seen, accepted: Accepted) -> str:
        now = int(time.time())
        checkpoint = accepted.checkpoint
        line = self.cosigner.cosign(checkpoint.text(), now)
        self._save(
            Seen(
                origin=seen.origin,
                keys=seen.keys,
                size=checkpoint.size,
                root=checkpoint.text().split("\n")[2],
                note=accepted.note + line,
                cosigned_at=now,
            )
        )
        return line

    def add_key(self, body: bytes) -> PublicKey | Refused:
        """Judge a certificate; keep the key that it is for.  JournalError."""
        with self._locked():
            seen = self._load(protocol.origin_of(body))
            key = protocol.judge_key(body, seen)
            if isinstance(key, Refused):
                return key
            assert seen is not None
            self._save(msgspec.structs.replace(seen, keys=(*seen.keys, key.text())))
            return key

    # ---- files, under the lock

    @contextlib.contextmanager
    def _locked(self) -> Generator[None]:
        with self._threads:
            try:
                lock = os.open(self.directory / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            except OSError as error:
                raise JournalError.of(error, self.directory) from error
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                yield
            finally:
                os.close(lock)

    def _path(self, origin: str) -> Path:
        return self.directory / "logs" / f"{sha256(origin.encode()).hexdigest()[:32]}.json"

    def _load(self, origin: str) -> Seen | None:
        path = self._path(origin)
        return self._read(path) if path.exists() else None

    @staticmethod
    def _read(path: Path) -> Seen:
        try:
            return msgspec.json.decode(path.read_bytes(), type=Seen)
        except OSError as error:
            raise JournalError.of(error, path) from error
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise JournalError(
                f"{path}: damaged: {error}", hint="restore the witness's directory from a backup"
            ) from error

    def _save(self, seen: Seen) -> None:
        path = self._path(seen.origin)
        try:
            files.replace(path, msgspec.json.encode(seen), mode=0o600)
            files.sync_directory(path.parent)
        except OSError as error:
            raise JournalError.of(error, path) from error

    def _keep(self, body: bytes) -> None:
        """Keep what a log signed and no honest log does, as far as there is room."""
        place = self.directory / "refused"
        with contextlib.suppress(OSError):
            if len(os.listdir(place)) < _REFUSED_MAX:
                when = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
                name = f"{when}-{sha256(body).hexdigest()[:12]}"
                files.replace(place / name, body, mode=0o600)
