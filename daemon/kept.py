"""Results that are worth keeping from one run to the next: a session starts sooner with them.

A directory of small files in the state directory, each named by the hash of what
it was made from; whatever is missing, damaged or from other code is made again.
Nothing depends on these files: they can be removed at any time.

SAFETY: the state directory is the user's own, mode 0700, and protected: no agent
can reach it, whatever its policy says.  Whoever can write here holds the broker's
keys and the journal, and could as well replace the supervisor.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
from collections.abc import Callable
from typing import TypeVar

import msgspec

from safeclaw.policies.document import Parent, Policy, Rule
from safeclaw.sandbox.filters import Filters

_DIRECTORY = "kept"
#: How many results are kept; then all are thrown away.
_MOST = 64
_DIGEST = 32
_HOUSE = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

Result = TypeVar("Result")


def policy(state: str, name: str, text: bytes, parents: tuple[Parent, ...] = ()) -> Policy:
    """Return the policy in ``text``, as ``loader.load`` does.  Raises PolicyError."""

    def make() -> Policy:
        from safeclaw.policies import loader

        return loader.load(text, name=name, parents=parents)

    return _keep(state, "policies", (name, text, parents), Policy, make)


def runtime(state: str) -> tuple[Rule, ...]:
    """Return the rules of the runtime preset."""

    def make() -> tuple[Rule, ...]:
        from safeclaw.policies.source import runtime_rules

        return runtime_rules()

    return _keep(state, "policies", ("runtime",), tuple[Rule, ...], make)


def filters(state: str, *, network: bool, confined: bool = False) -> Filters:
    """Return the seccomp programs for this kernel."""

    def make() -> Filters:
        from safeclaw.sandbox.filters import build

        return build(network=network, confined=confined)

    system = os.uname()
    key = (network, confined, system.machine, system.release)
    return _keep(state, "sandbox", key, Filters, make)


def _keep(
    state: str, package: str, key: object, kind: type[Result], make: Callable[[], Result]
) -> Result:
    """Return what ``make`` returned for this key and this code, now or in an earlier run."""
    exact = msgspec.msgpack.encode((package, _code(package), key))
    digest = hashlib.sha256(exact).digest()
    directory = os.path.join(state, _DIRECTORY)
    path = os.path.join(directory, digest.hex())
    found = _read(path)
    if found is not None and hashlib.sha256(digest + found[_DIGEST:]).digest() == found[:_DIGEST]:
        with contextlib.suppress(msgspec.DecodeError):
            return msgspec.msgpack.decode(found[_DIGEST:], type=kind)
    made = make()
    payload = msgspec.msgpack.encode(made)
    with contextlib.suppress(OSError):  # a full disk costs time only
        _write(directory, path, hashlib.sha256(digest + payload).digest() + payload)
    return made


def _code(package: str) -> list[tuple[str, int, int]]:
    """Return what changes when the code or the presets of a package change."""
    found: list[tuple[str, int, int]] = []
    for directory in (package, f"{package}/presets"):
        with contextlib.suppress(FileNotFoundError), os.scandir(f"{_HOUSE}/{directory}") as entries:
            for entry in entries:
                if entry.name.endswith((".py", ".yaml")):
                    status = entry.stat()
                    found.append((entry.path, status.st_mtime_ns, status.st_size))
    return sorted(found)


def _read(path: str) -> bytes | None:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return None
    with open(descriptor, "rb") as source, contextlib.suppress(OSError):
        return source.read()
    return None


def _write(directory: str, path: str, data: bytes) -> None:
    """Put a file in its place whole: another run may be reading, or writing the same."""
    with contextlib.suppress(FileExistsError):
        os.mkdir(directory, 0o700)
    names = os.listdir(directory)
    if len(names) >= _MOST:
        for name in names:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(os.path.join(directory, name))
    fresh = f"{path}.{os.getpid()}"
    descriptor = os.open(
        fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600
    )
    try:
        with open(descriptor, "wb") as out:
            out.write(data)
        os.rename(fresh, path)
    except BaseException:
        os.unlink(fresh)
        raise
