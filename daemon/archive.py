"""The texts of policies that were in force, or wait to be: each kept under its own hash.

A directory in the broker's state.  A version of a policy is a value that names the texts
it is made of; from both, exactly that policy comes back, whatever its files say now.  One that
extends others is a file here, too, under its hash: records name no other.

A text stays for as long as the broker remembers a version that is made of it, or a record that
is still in the journal names it.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import threading
from collections.abc import Iterable
from pathlib import Path

import msgspec

from safeclaw.daemon import kept, statefile
from safeclaw.daemon.journal import files, retention
from safeclaw.daemon.journal.record import PolicyRef
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source
from safeclaw.policies.document import Parent, Policy

_HASH = re.compile(r"[0-9a-f]{64}")
#: How much of a segment is searched at once, in bytes: the broker decides in between.
_CHUNK = 1 << 18


class Part(msgspec.Struct, frozen=True):
    """A policy that ``child`` (a name) extends as ``ref``: its name, and its text's SHA-256."""

    child: str
    ref: str
    name: str
    text: str


class Version(msgspec.Struct, frozen=True):
    """One policy as it was at a time: its names, and the SHA-256 of the texts it is made of.

    ``sha256`` names the whole, as records do; ``text`` is the policy's own text.  ``name`` is
    the path it was read from, or a shipped policy's name.
    """

    name: str
    title: str
    version: str
    sha256: str
    text: str
    parents: tuple[Part, ...] = ()

    @property
    def ref(self) -> PolicyRef:
        """What records call it."""
        return PolicyRef(self.title, self.sha256, self.version)

    @property
    def made_of(self) -> set[str]:
        """The SHA-256 of each of its texts."""
        return {self.text, *(part.text for part in self.parents)}

    @property
    def files(self) -> dict[str, str]:
        """The texts that stand in files of the host: path to SHA-256, the policy's own first."""
        named = {self.name: self.text, **{part.name: part.text for part in self.parents}}
        return {path: text for path, text in named.items() if os.path.isabs(path)}


class Found(msgspec.Struct, frozen=True):
    """A policy that was read, or came back from the archive, and which version that is."""

    policy: Policy
    version: Version

    @property
    def files(self) -> tuple[str, ...]:
        """The files it stands in, by where they lead."""
        return tuple(os.path.realpath(path) for path in self.version.files)


class Archive:
    """The directory ``policies`` of a state directory; its files are readable to its group."""

    def __init__(self, state: Path) -> None:
        self._state = state
        self._lock = threading.Lock()
        self.place = state / "policies"

    def keep(self, name: str, text: bytes, parents: tuple[Parent, ...]) -> Found:
        """Return the policy of these texts; they are kept.

        Raises PolicyError when they are no policy.  A full disk costs only the way back.
        """
        policy = kept.policy(str(self._state), name, text, parents)
        parts = tuple(Part(one.child, one.ref, one.name, self._keep(one.text)) for one in parents)
        version = Version(name, policy.name, policy.version, policy.sha256, self._keep(text), parts)
        if parts:
            self._write(f"{version.sha256}.json", msgspec.json.encode(version))
        return Found(policy, version)

    def _keep(self, text: bytes) -> str:
        digest = hashlib.sha256(text).hexdigest()
        self._write(f"{digest}.yaml", text)
        return digest

    def _write(self, name: str, content: bytes) -> None:
        """Have a file there, whose time says when it was last wanted."""
        place = self.place / name
        # Nothing rests on it but the way back, which says what is missing.
        with self._lock, contextlib.suppress(OSError, BrokerError):
            self.place.mkdir(mode=0o750, exist_ok=True)
            if place.exists():
                os.utime(place)
            else:
                statefile.replace(place, content, 0o640)

    def text(self, digest: str) -> bytes:
        """Return a text by its SHA-256.  PolicyError when it is not kept, or not itself."""
        place = self.place / f"{digest}.yaml"
        if not _HASH.fullmatch(digest) or not place.exists():
            raise PolicyError(
                f"no text is kept under the hash {digest[:64]!r}",
                hint="safeclaw policy history names those that were in force",
            )
        text = source.read(place)
        if hashlib.sha256(text).hexdigest() != digest:
            raise PolicyError(
                f"{place}: damaged: it has not the hash it is kept under",
                hint="restore it from a backup; nothing in force depends on it",
            )
        return text

    def texts(self, version: Version) -> tuple[bytes, tuple[Parent, ...]]:
        """Return what a version is made of.  PolicyError."""
        parents = tuple(
            Parent(part.child, part.ref, part.name, self.text(part.text))
            for part in version.parents
        )
        return self.text(version.text), parents

    def load(self, version: Version) -> Found:
        """Return a version as it was.  PolicyError."""
        text, parents = self.texts(version)
        policy = kept.policy(str(self._state), version.name, text, parents)
        if policy.sha256 != version.sha256:
            raise PolicyError(
                f"{version.name}: kept as {version.sha256}, but is {policy.sha256}",
                hint="another version of safeclaw reads that text otherwise; edit the file instead",
            )
        return Found(policy, version)

    # ---- what is not wanted any more

    def sweep(self, journal: Path, known: Iterable[Version]) -> list[str]:
        """Delete what no version of ``known``, and no record, names; return the files' names.

        For a thread: where there is anything that may go, it searches the whole journal.
        """
        try:
            return self._sweep(journal, list(known))
        except (OSError, ValueError, msgspec.MsgspecError):
            return []  # what was not read may name them all

    def _sweep(self, journal: Path, known: list[Version]) -> list[str]:
        there = [path for path in _listed(self.place) if _HASH.fullmatch(path.stem)]
        oldest = _oldest(journal)
        wanted = {version.sha256 for version in known}.union(*(one.made_of for one in known))
        # SAFETY: what was wanted since the oldest record was written stays, whoever names it: a
        # version that was read just now is known to nobody yet.
        old = {path for path in there if path.stem not in wanted and path.stat().st_mtime < oldest}
        named = _named(journal, {path.stem for path in old}) if old else set[str]()
        going = {path for path in old if path.stem not in named}
        for path in there:
            if path.suffix == ".json" and path not in going:
                texts = msgspec.json.decode(path.read_bytes(), type=Version).made_of
                going = {one for one in going if one.suffix == ".json" or one.stem not in texts}
        return [path.name for path in sorted(going) if self._delete(path, oldest)]

    def _delete(self, path: Path, oldest: float) -> bool:
        with self._lock:
            if path.stat().st_mtime < oldest:  # nobody has wanted it meanwhile
                path.unlink()
                return True
        return False


def _listed(place: Path) -> list[Path]:
    """Return what is in a directory; nothing when there is none."""
    return list(place.iterdir()) if place.is_dir() else []


def _oldest(journal: Path) -> float:
    """Return when the oldest record that is left was written, in seconds since the epoch.

    0 when there is none: then nothing is older.  OSError, ValueError.
    """
    found = files.segments(journal)
    first = retention.first_record(found[0][1]) if found else None
    return retention.moment(first.ts).timestamp() if first is not None else 0.0


def _named(journal: Path, hashes: set[str]) -> set[str]:
    """Return which of these the journal's records hold, wherever in them.  OSError."""
    missing = {digest.encode() for digest in hashes}
    for _, path in files.segments(journal):
        try:
            stream = path.open("rb", buffering=0)
        except FileNotFoundError:
            continue  # it was pruned just now
        with stream:
            tail = b""
            while chunk := stream.read(_CHUNK):
                data = tail + chunk
                missing -= {digest for digest in missing if digest in data}
                if not missing:
                    return hashes
                tail = data[-63:]
    return hashes - {digest.decode() for digest in missing}
