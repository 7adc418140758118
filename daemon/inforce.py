"""The policies in force for registered agents: read by the broker, never by an agent's user.

A policy is named by an absolute path, by its name in the configuration's ``policies``
directory, or by the name of a shipped one.  Whatever was in force is kept in the state
directory under its hash, so that it can be shown, compared and put back later.
"""

from __future__ import annotations

import contextlib
import grp
import os
import stat
import subprocess
from pathlib import Path

import msgspec

from safeclaw.daemon import kept
from safeclaw.daemon.journal.record import Entry, PolicyRef, RecordType
from safeclaw.daemon.peer import user_name
from safeclaw.errors import PolicyError
from safeclaw.policies import source
from safeclaw.policies.document import Policy
from safeclaw.policies.model import printable

_GIT_SECONDS = 5


class Found(msgspec.Struct, frozen=True):
    """A policy, the bytes it was read from, and the files it stands in."""

    policy: Policy
    text: bytes
    files: tuple[str, ...]


class Change(msgspec.Struct, frozen=True):
    """What a reload found; without a policy, why the old one stays."""

    ref: str
    old: Policy
    found: Found | None
    problem: str = ""
    commit: str = ""

    @property
    def policy(self) -> Policy | None:
        """The policy that comes into force."""
        return None if self.found is None else self.found.policy

    @property
    def summary(self) -> str:
        """One line for a person."""
        if self.policy is None:
            return f"{self.ref}: stays as it was: {self.problem}"
        return f"{self.ref}: {self.old.sha256[:12]} -> {self.policy.sha256[:12]}"

    def entry(self) -> Entry:
        """Return the record of it: both hashes, and the commit where there is one."""
        detail: dict[str, object] = {"previous": self.old.sha256, "ref": self.ref}
        if self.commit:
            detail["commit"] = self.commit
        policy = self.policy or self.old
        if self.policy is not None:
            detail["rules"] = len(policy.rules)
        return Entry(
            type=RecordType.POLICY_LOAD,
            policy=PolicyRef(policy.name, policy.sha256, policy.version),
            decision=None if self.policy is not None else "deny",
            reason=printable(self.problem) or None,
            detail=detail,
        )


class Hands(msgspec.Struct, frozen=True):
    """Whose hands may change a policy that others are held to: root's, and a group's."""

    group: str

    def check(self, path: str) -> None:
        """Raise PolicyError when somebody else may change or replace a file (cf. sshd_config(5)).

        SAFETY: whoever may write to any directory above may put another file in its place.
        """
        real = os.path.realpath(path)
        for place in dict.fromkeys((path, real, *_above(path), *_above(real))):
            try:
                found = os.lstat(place)
            except OSError as problem:
                raise PolicyError(f"{place}: {problem.strerror}") from problem
            whose = ""
            if found.st_uid not in (0, os.geteuid()):
                whose = f"user {user_name(found.st_uid)}"
            elif not stat.S_ISLNK(found.st_mode) and not found.st_mode & stat.S_ISVTX:
                if found.st_mode & stat.S_IWOTH:
                    whose = "everybody"
                elif found.st_mode & stat.S_IWGRP and found.st_gid not in self._trusted():
                    whose = f"group {found.st_gid}"
            if whose:
                raise PolicyError(
                    f"{place} may be changed by {whose}: no policy for registered agents",
                    hint=f"chown root {place} && chmod go-w {place}",
                )

    def _trusted(self) -> tuple[int, ...]:
        try:
            return 0, grp.getgrnam(self.group).gr_gid
        except KeyError:
            return (0,)


def _above(path: str) -> tuple[str, ...]:
    return tuple(str(parent) for parent in Path(path).parents)


class InForce:
    """What was last read whole and valid, by reference."""

    def __init__(self, state: Path, directory: Path, hands: Hands | None = None) -> None:
        """``hands``: who may be able to change a policy's file; None where one user does all."""
        self._state = state
        self._hands = hands
        self._directory = directory
        self._found: dict[str, Found] = {}
        self._problems: dict[str, str] = {}

    @property
    def directory(self) -> Path:
        """Where named policies are looked for first."""
        return self._directory

    def watched(self) -> set[str]:
        """Return the directories in which a change can change a policy in force."""
        places = {os.path.dirname(path) for one in self._found.values() for path in one.files}
        return {*places, str(self._directory)}

    def hashes(self) -> dict[str, str]:
        """Return the hash of what is in force under each reference."""
        return {ref: found.policy.sha256 for ref, found in self._found.items()}

    def get(self, ref: str) -> Found:
        """Return the policy in force under a reference; read it, the first time.  PolicyError."""
        found = self._found.get(ref)
        if found is None:
            found = self._found[ref] = self._read(ref)
        return found

    def look(self) -> list[Change]:
        """Read all again, and return what is not as it was.  For a thread: it takes its time.

        What is invalid is said once.
        """
        changes: list[Change] = []
        for ref, old in list(self._found.items()):
            try:
                new = self._read(ref)
            except PolicyError as problem:
                changes.append(Change(ref, old.policy, None, problem=problem.message))
                continue
            if new.policy.sha256 != old.policy.sha256:
                changes.append(Change(ref, old.policy, new, commit=commit_of(new)))
            else:
                changes.append(Change(ref, old.policy, old))
        return changes

    def accept(self, changes: list[Change]) -> list[Change]:
        """Put in force what was found; return what is news.  For the main thread."""
        news: list[Change] = []
        for change in changes:
            if change.found is None:
                if self._problems.get(change.ref) != change.problem:
                    self._problems[change.ref] = change.problem
                    news.append(change)
                continue
            self._problems.pop(change.ref, None)
            if change.found.policy.sha256 != self._found[change.ref].policy.sha256:
                self._found[change.ref] = change.found
                news.append(change)
        return news

    def _read(self, ref: str) -> Found:
        name, text = self._find(ref)
        parents = source.gather(name, text)
        policy = kept.policy(str(self._state), name, text, parents)
        files = tuple(
            os.path.realpath(path)
            for path in (name, *(parent.name for parent in parents))
            if os.path.isabs(path)
        )
        if self._hands is not None:
            for path in (name, *(parent.name for parent in parents)):
                if os.path.isabs(path):
                    self._hands.check(path)
        self._keep(policy.sha256, text)
        return Found(policy, text, files)

    def _find(self, ref: str) -> tuple[str, bytes]:
        named = self._directory / f"{ref}.yaml"
        if not ref.startswith(("/", ".")) and ".." not in ref.split("/") and named.exists():
            return str(named), source.read(named)
        if "/" in ref and not os.path.isabs(ref) and not ref.startswith("roles/"):
            raise PolicyError(
                f"{ref}: the broker reads policies by absolute path, or by name",
                hint=f"put it into {self._directory} and name it without .yaml",
            )
        return source.find(ref, self._directory)

    def _keep(self, sha256: str, text: bytes) -> None:
        """Keep the text of what was in force; a full disk costs only the history."""
        place = self._state / "policies" / f"{sha256}.yaml"
        with contextlib.suppress(OSError):
            place.parent.mkdir(mode=0o700, exist_ok=True)
            if not place.exists():
                fresh = place.with_suffix(".new")
                fresh.write_bytes(text)
                fresh.rename(place)

    def kept_text(self, sha256: str) -> bytes | None:
        """Return the text that was in force under a hash, if it is still kept."""
        try:
            return (self._state / "policies" / f"{sha256}.yaml").read_bytes()
        except OSError:
            return None


def commit_of(found: Found) -> str:
    """Return the Git commit that a policy file stands at; "" without one, or when it differs."""
    if not found.files:
        return ""
    path = Path(found.files[0])
    # SAFETY: whoever owns the repository must not choose what runs here: nothing is fetched,
    # verified or filtered, which the repository's own configuration could name programs for.
    git = ["git", "-c", "safe.directory=*", "-c", "core.fsmonitor=false", "-C", str(path.parent)]
    environment = {**os.environ, "GIT_ALLOW_PROTOCOL": "none", "GIT_NO_LAZY_FETCH": "1"}

    def said(*words: str) -> str:
        done = subprocess.run(
            [*git, *words],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
            check=False,
            env=environment,
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    with contextlib.suppress(OSError, subprocess.SubprocessError):
        commit = said("log", "-1", "--no-show-signature", "--format=%H", "--", path.name)
        if not commit:
            return ""
        there = said("rev-parse", f"HEAD:./{path.name}")
        here = said("hash-object", "--no-filters", "--", path.name)
        return commit if here and here == there else f"{commit}-dirty"
    return ""
