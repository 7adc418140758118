"""Where policies come from: files, the workspace, the shipped presets.

The only module of this package that reads files; the others are pure.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from pathlib import Path

from safeclaw.errors import PolicyError
from safeclaw.policies import command, network
from safeclaw.policies.compiled import Context, Program
from safeclaw.policies.document import Effect, Policy, Rule
from safeclaw.policies.loader import RUNTIME_NAME, load
from safeclaw.policies.yamltext import MAX_BYTES

PRESETS = Path(__file__).resolve().parent / "presets"
IN_WORKSPACE = Path(".safeclaw") / "policy.yaml"
DEFAULT = "default"
SYSTEM_PATH = ("/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin")


def preset_names() -> tuple[str, ...]:
    """Return the names of the shipped policies, roles as ``roles/NAME``."""
    files = [path.relative_to(PRESETS).with_suffix("") for path in PRESETS.rglob("*.yaml")]
    return tuple(sorted(str(path) for path in files if path.name != RUNTIME_NAME))


def find(ref: str | None, workspace: Path) -> tuple[str, bytes]:
    """Return the name (a path, or a preset's name) and the bytes of the policy to use.

    ``ref`` is a file or the name of a shipped policy; without it the
    workspace's own policy is taken, else the shipped default.  Raises PolicyError.
    """
    if ref is None:
        own = workspace / IN_WORKSPACE
        if os.path.lexists(own):
            return str(own), read(own)
        ref = DEFAULT
    elif ("/" in ref and os.path.lexists(ref)) or ref.endswith((".yaml", ".yml")):
        return ref, read(Path(ref))
    for name in preset_names():
        if ref in (name, name.rpartition("/")[2]):
            return f"{name}.yaml", read(PRESETS / f"{name}.yaml")
    if os.path.isfile(ref):
        return ref, read(Path(ref))
    raise PolicyError(
        f"{ref}: no such policy file, and no shipped policy of that name",
        hint=f"shipped are {', '.join(preset_names())}",
    )


def read(path: Path) -> bytes:
    """Return the bytes of a policy file, but only of a regular file of bounded size."""
    try:
        # Non-blocking, so that a FIFO in a policy's place stops nobody.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            if not stat.S_ISREG(os.fstat(descriptor).st_mode):
                raise PolicyError(f"{path}: not a regular file")
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError(f"{path}: cannot be read: {error.strerror}") from error


def load_file(path: Path) -> Policy:
    """Return the policy in a file.  Raises PolicyError."""
    return load(read(path), name=str(path))


@functools.cache
def runtime_rules() -> tuple[Rule, ...]:
    """Return the rules of the runtime preset."""
    file = f"{RUNTIME_NAME}.yaml"
    return load(read(PRESETS / file), name=file, shipped_runtime=True).rules


def context(
    policy: Policy,
    *,
    workspace: Path,
    home: Path,
    protected: tuple[str, ...] = (),
    read_only: tuple[str, ...] = (),
    interpreter: tuple[str, ...] = (),
    path: str | None = None,
    resolve: bool = True,
) -> Context:
    """Collect what ``policy`` has to know: where names lead, what hosts resolve to.

    ``interpreter`` are prefixes of other interpreters than this one (the agent's);
    ``path`` is the PATH that bare program names are looked up on (the system's
    directories come last); ``resolve`` turns host names into addresses.
    """
    directories = [part for part in (path or "").split(os.pathsep) if part.startswith("/")]
    rules = [*policy.rules, *runtime_rules()]
    programs = {
        name: found
        for rule in rules
        for text in rule.commands
        if (name := command.bare_name(text)) is not None
        and (found := _which(name, (*directories, *SYSTEM_PATH))) is not None
    }
    return Context(
        workspace=os.path.realpath(workspace),
        home=os.path.realpath(home),
        protected=tuple(os.path.realpath(item) for item in protected),
        read_only=tuple(os.path.realpath(item) for item in read_only),
        interpreter=tuple(dict.fromkeys((*interpreter_prefixes(), *interpreter))),
        programs=tuple(
            Program(name, found, os.path.realpath(found))
            for name, found in sorted(programs.items())
        ),
        addresses=_addresses(policy) if resolve else (),
    )


def interpreter_prefixes() -> tuple[str, ...]:
    """Return the canonical prefixes of this Python, but for those under /usr."""
    prefixes = {os.path.realpath(item) for item in (sys.base_prefix, sys.prefix)}
    return tuple(sorted(item for item in prefixes if item not in ("/", "/usr")))


def _which(name: str, directories: tuple[str, ...]) -> str | None:
    for directory in directories:
        candidate = f"{directory.rstrip('/')}/{name}"
        if os.path.isfile(candidate) and os.access(candidate, os.X_OK):
            return candidate
    return None


def _addresses(policy: Policy) -> tuple[tuple[str, tuple[str, ...]], ...]:
    names = {
        host.name
        for rule in policy.rules
        if rule.effect is not Effect.DENY or rule.hosts
        for text in rule.hosts
        for host in network.hosts(text)
        if host.name is not None and not host.name.startswith("*.")
    }
    found: list[tuple[str, tuple[str, ...]]] = []
    if not names:
        return ()
    import socket  # only a policy that names hosts needs it

    for name in sorted(names):
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            continue
        found.append((name, tuple(sorted({str(answer[4][0]) for answer in answers}))))
    return tuple(found)
