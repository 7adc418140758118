"""The texts of policies that were in force, or wait to be: each kept under its own hash.

A directory in the broker's state.  A version of a policy is a value that names the texts
it is made of; from both, exactly that policy comes back, whatever its files say now.
"""

from __future__ import annotations

import hashlib
import os
import re
from pathlib import Path

import msgspec

from safeclaw.daemon import kept, statefile
from safeclaw.daemon.journal.record import PolicyRef
from safeclaw.errors import BrokerError, PolicyError
from safeclaw.policies import source
from safeclaw.policies.document import Parent, Policy

_HASH = re.compile(r"[0-9a-f]{64}")


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
        self.place = state / "policies"

    def keep(self, name: str, text: bytes, parents: tuple[Parent, ...]) -> Found:
        """Return the policy of these texts; they are kept.

        Raises PolicyError when they are no policy.  A full disk costs only the way back.
        """
        policy = kept.policy(str(self._state), name, text, parents)
        parts = tuple(Part(one.child, one.ref, one.name, self._keep(one.text)) for one in parents)
        version = Version(name, policy.name, policy.version, policy.sha256, self._keep(text), parts)
        return Found(policy, version)

    def _keep(self, text: bytes) -> str:
        digest = hashlib.sha256(text).hexdigest()
        place = self.place / f"{digest}.yaml"
        try:
            self.place.mkdir(mode=0o750, exist_ok=True)
            if not place.exists():
                statefile.replace(place, text, 0o640)
        except (OSError, BrokerError):
            pass  # nothing rests on it but the way back, which says what is missing
        return digest

    def text(self, digest: str) -> bytes:
        """Return a text by its SHA-256.  PolicyError when it is not kept, or not itself."""
        place = self.place / f"{digest}.yaml"
        if not _HASH.fullmatch(digest) or not place.exists():
            raise PolicyError(f"no text is kept under the hash {digest[:64]!r}")
        text = source.read(place)
        if hashlib.sha256(text).hexdigest() != digest:
            raise PolicyError(f"{place}: damaged: it has not the hash it is kept under")
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
            raise PolicyError(f"{version.name}: kept as {version.sha256}, but is {policy.sha256}")
        return Found(policy, version)
