"""Where the policies that were in force come from: Git commits, files, shipped presets.

Asks git(1), which only reads, with everything off that a repository's configuration could run.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import msgspec

from safeclaw.daemon.evidence.summary import Force
from safeclaw.errors import PolicyError
from safeclaw.policies.loader import load
from safeclaw.policies.source import PRESETS


class Origin(msgspec.Struct, frozen=True):
    """Where the bytes of a policy hash were found.

    ``kind`` is git, file, kept (by the broker), shipped or unknown.
    """

    sha256: str
    kind: str
    path: str = ""
    commit: str = ""
    author: str = ""
    date: str = ""
    subject: str = ""


def origins(
    hashes: list[str], repository: Path | None, kept: Path | None = None
) -> tuple[list[Origin], dict[str, bytes]]:
    """Return where each hash comes from, and the bytes of those that were found.

    ``kept`` is the directory in which a broker keeps the texts of what was in force.
    """
    wanted, found = set(hashes), dict[str, Origin]()
    content: dict[str, bytes] = {}
    for path in sorted(PRESETS.rglob("*.yaml")):
        _take(path.read_bytes(), Origin("", "shipped", str(path.relative_to(PRESETS))),
              wanted, found, content)  # fmt: skip
    if kept is not None:
        for path in (kept / f"{digest}.yaml" for digest in hashes):
            with contextlib.suppress(OSError):
                _take(path.read_bytes(), Origin("", "kept", path.name), wanted, found, content)
    if repository is not None:
        for path in sorted((repository / ".safeclaw").glob("**/*.yaml")):
            if path.is_file():
                name = str(path.relative_to(repository))
                _take(path.read_bytes(), Origin("", "file", name), wanted, found, content)
        for origin, data in _committed(repository):
            _take(data, origin, wanted, found, content)
    return [found.get(item, Origin(item, "unknown")) for item in hashes], content


def _take(
    data: bytes,
    origin: Origin,
    wanted: set[str],
    found: dict[str, Origin],
    content: dict[str, bytes],
) -> None:
    """Keep an origin if it is of a hash in force; a commit says more than a file."""
    digest = sha256(data).hexdigest()
    if digest in wanted:
        found[digest] = msgspec.structs.replace(origin, sha256=digest)
        content[digest] = data


#: SAFETY: the repository may be an agent's workspace, and its configuration, which an agent can
#: write, names programs: hooks, a signature checker, a pager, a transport.  None may run here.
_TAME = (
    # whose it is says nothing about what may be read: git would show no history at all
    "-c", "safe.directory=*",
    "-c", "core.hooksPath=/dev/null",
    "-c", "core.fsmonitor=false",
    "-c", "log.showSignature=false",
    "-c", "gpg.program=/bin/false",
    "-c", "protocol.allow=never",
    "--no-pager", "--no-replace-objects",
)  # fmt: skip


def _git(repository: Path, *arguments: str) -> bytes:
    result = subprocess.run(
        ["git", *_TAME, "-C", str(repository), *arguments],
        check=False,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        env={
            "PATH": os.environ.get("PATH", os.defpath),
            "GIT_CONFIG_NOSYSTEM": "1",
            "GIT_NO_LAZY_FETCH": "1",
            "GIT_TERMINAL_PROMPT": "0",
            "HOME": "/",
        },
        timeout=60,
    )
    return result.stdout if result.returncode == 0 else b""


_COMMIT = re.compile(r"\x01[0-9a-f]{40,64}")
#: Nor what attributes may name for showing a difference.
_PLAIN = ("--no-ext-diff", "--no-textconv", "--no-show-signature")


def _committed(repository: Path) -> Iterator[tuple[Origin, bytes]]:
    """Yield every version of every policy in the history, newest first."""
    fields = "--format=%x01%H%x00%an <%ae>%x00%cI%x00%s%x00"
    try:
        log = _git(
            repository, "log", *_PLAIN, "--all", "-z", fields, "--name-only", "--", ".safeclaw"
        )
        words = iter(log.decode("utf-8", "replace").split("\0"))
        commit = author = date = subject = ""
        for word in words:
            name = word.strip("\n")
            # SAFETY: by count, not by what is in them: who commits chooses an author and a subject.
            if _COMMIT.fullmatch(name):
                commit = name[1:]
                author, date, subject = (next(words, "") for _ in range(3))
            elif commit and name.endswith((".yaml", ".yml")):
                data = _git(repository, "cat-file", "blob", f"{commit}:{name}")
                yield Origin("", "git", name, commit, author, date, subject), data
    except (OSError, subprocess.TimeoutExpired):
        return


def questions(policies: list[Force], found: list[Origin], content: dict[str, bytes]) -> list[str]:
    """Return what an auditor would ask about policies, now that their text is known or is not."""
    said: list[str] = []
    for policy, origin in zip(policies, found, strict=True):
        name = f"policy {policy.name} {policy.sha256[:12]}"
        if origin.kind == "file":
            said.append(f"{name}: in {origin.path}, and in no commit")
        elif origin.kind == "unknown":
            said.append(f"{name}: neither in a commit nor in a file that was given")
        if policy.sha256 in content and policy.rules is not None and policy.decisions:
            said += _unused(policy, name, content[policy.sha256])
    return said


def _unused(policy: Force, name: str, content: bytes) -> list[str]:
    """Return the policy's own rules that decided nothing, in words."""
    try:
        rules = load(content, name=policy.name).rules
    except PolicyError:
        return []  # it extends others, or was written for another version
    return [
        f"{name}: never used: {rule.id}, {rule.effect} {', '.join(rule.actions)}"
        + (f" ({rule.reason})" if rule.reason else "")
        for rule in rules
        if rule.id not in policy.used and not rule.id.startswith("runtime:")
    ]


def log_text(repository: Path | None) -> str:
    """Return the history of the policies as git shows it; empty without one."""
    if repository is None:
        return ""
    try:
        shown = _git(
            repository, "log", *_PLAIN, "--all", "--date=iso-strict", "--stat", "--", ".safeclaw"
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return shown.decode("utf-8", "replace")
