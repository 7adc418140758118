"""Where policies come from: files, the workspace, the shipped presets.

The only module of this package that reads files; the others are pure.
"""

from __future__ import annotations

import functools
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from safeclaw.errors import PolicyError
from safeclaw.policies import command
from safeclaw.policies.context import Context, Program
from safeclaw.policies.document import MAX_BYTES, RUNTIME_NAME, Effect, Parent, Policy, Rule
from safeclaw.policies.glob import PathGlob, path_globs
from safeclaw.policies.reach import names_to_resolve

PRESETS = Path(__file__).resolve().parent / "presets"
IN_WORKSPACE = Path(".safeclaw") / "policy.yaml"
DEFAULT = "default"
#: How long the names that rules refuse may take to resolve, in seconds, all together.
_RESOLVING = 2.0
#: No file can be reached by a name of so many bytes (limits.h).
_PATH_MAX = 4096
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
                raise PolicyError(
                    f"{path}: not a regular file", hint="a policy is a file of its own"
                )
            return file.read(MAX_BYTES + 1)
    except OSError as error:
        raise PolicyError.of(error, f"{path}: cannot be read") from error


def load_file(path: Path) -> Policy:
    """Return the policy in a file, with its parents.  Raises PolicyError."""
    # Imported late, here and below: reading YAML takes longer to import than all the rest.
    from safeclaw.policies.loader import load

    name, text = str(path), read(path)
    return load(text, name=name, parents=gather(name, text))


def gather(name: str, text: bytes) -> tuple[Parent, ...]:
    """Return what the policy ``text`` of ``name`` extends, and what that extends.

    A path (with a slash, or ending in .yaml) stands in the directory of the file that
    names it; any other word is a shipped policy.  What is missing says so in its place:
    ``loader.load`` knows the line.
    """
    # Most policies extend nothing: they are read once, by the broker.
    if b"extends" not in text:
        return ()
    from safeclaw.policies import loader
    from safeclaw.policies.inherit import MAX_PARENTS

    found: list[Parent] = []
    todo, seen = [(name, text)], {name}
    while todo and len(found) <= MAX_PARENTS:
        child, own = todo.pop(0)
        for ref in loader.extended(own, child):
            parent = _parent(child, ref)
            found.append(parent)
            if not parent.problem and parent.name not in seen:
                seen.add(parent.name)
                todo.append((parent.name, parent.text))
    return tuple(found)


def _parent(child: str, ref: str) -> Parent:
    shipped = next((one for one in preset_names() if ref in (one, one.rpartition("/")[2])), None)
    try:
        if shipped is not None:
            return Parent(child, ref, f"{shipped}.yaml", read(PRESETS / f"{shipped}.yaml"))
        if "/" in ref or ref.endswith((".yaml", ".yml")):
            path = os.path.normpath(os.path.join(os.path.dirname(child), ref))
            return Parent(child, ref, path, read(Path(path)))
    except PolicyError as error:
        return Parent(child, ref, problem=error.message)
    return Parent(child, ref, problem=f"no shipped policy; those are {', '.join(preset_names())}")


@functools.cache
def runtime_rules() -> tuple[Rule, ...]:
    """Return the rules of the runtime preset."""
    from safeclaw.policies.loader import load

    file = f"{RUNTIME_NAME}.yaml"
    return load(read(PRESETS / file), name=file, shipped_runtime=True).rules


#: As many symbolic links on one way as the kernel follows (path_resolution(7)).
_LINKS_MAX = 40


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
    runtime: tuple[Rule, ...] | None = None,
) -> Context:
    """Collect what ``policy`` has to know: where names lead, what hosts resolve to.

    ``interpreter`` are prefixes of other interpreters than this one (the agent's);
    ``path`` is the PATH that bare program names are looked up on (the system's
    directories come last); ``resolve`` turns the names that rules refuse into addresses;
    ``runtime`` are the rules of the runtime preset, where they have been read already.
    """
    directories = [part for part in (path or "").split(os.pathsep) if part.startswith("/")]
    rules = [*policy.rules, *(runtime_rules() if runtime is None else runtime)]
    programs = {
        name: found
        for rule in rules
        for text in rule.commands
        if (name := command.bare_name(text)) is not None
        and (found := _which(name, (*directories, *SYSTEM_PATH))) is not None
    }
    leads = _leads(policy, os.path.realpath(workspace), os.path.realpath(home))
    # SAFETY: who turns a link that a refusing rule is named by decides what the next session, or
    # this one under another policy, is refused.
    turned = dict.fromkeys(link for named, _ in leads for link in links(named))
    return Context(
        workspace=os.path.realpath(workspace),
        home=os.path.realpath(home),
        protected=_places(protected),
        read_only=tuple(dict.fromkeys((*_places(read_only), *turned))),
        interpreter=tuple(dict.fromkeys((*interpreter_prefixes(), *interpreter))),
        programs=tuple(
            Program(name, found, os.path.realpath(found), tuple(links(found)))
            for name, found in sorted(programs.items())
        ),
        addresses=_addresses(policy) if resolve else (),
        leads=leads,
    )


def _leads(policy: Policy, workspace: str, home: str) -> tuple[tuple[str, str], ...]:
    """Return the literal beginnings of refusing rules that have a link on the way: where they lead.

    What lies in /proc and /dev leads elsewhere for each process.
    """
    found: dict[str, str] = {}
    parents: dict[str, str] = {}
    for prefix in refused(policy, workspace, home):
        parent, _, name = prefix.rpartition("/")
        if parent not in parents:
            parents[parent] = os.path.realpath(parent or "/")
        real = os.path.join(parents[parent], name)
        if os.path.islink(real):
            real = os.path.realpath(real)
        if real != prefix:
            found[prefix] = real
    return tuple(sorted(found.items()))


def refused(policy: Policy, workspace: str, home: str) -> set[str]:
    """Return the literal beginnings of what rules refuse, but for those in /proc and /dev."""
    globs: list[PathGlob] = []
    for rule in policy.rules:
        if rule.effect is Effect.ALLOW:
            continue
        for text in rule.paths:
            globs += path_globs(text, workspace=workspace, home=home)
        for text in rule.commands:
            commands = command.command_globs(text, workspace=workspace, home=home)
            globs += [one.path for one in commands if one.path is not None]
    return {
        one.prefix
        for one in globs
        if len(one.prefix) < _PATH_MAX and not one.prefix.startswith(("/proc/", "/dev/"))
    }


def _places(paths: tuple[str, ...]) -> tuple[str, ...]:
    """Return where each path leads, and every symbolic link on its way.

    SAFETY: who may put another link in the place of one decides where the path leads next.
    """
    found: dict[str, None] = {}
    for path in paths:
        found[os.path.realpath(path)] = None
        found |= dict.fromkeys(links(os.path.abspath(path)))
    return tuple(found)


def links(path: str, depth: int = 0) -> Iterator[str]:
    """Yield every symbolic link on the way of an absolute path; ``depth``: how many came before."""
    here, parts = "/", [part for part in path.split("/") if part]
    for at, part in enumerate(parts):
        step = os.path.join(here, part)
        if os.path.islink(step) and depth < _LINKS_MAX:
            yield step
            rest = os.path.join(here, os.readlink(step), *parts[at + 1 :])
            yield from links(os.path.normpath(rest), depth + 1)
            return
        here = step


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
    """Resolve the names that rules refuse, where a rule could allow their bare addresses.

    What rules allow by name needs nothing here: the session's resolver binds names to
    addresses as the agent asks for them.
    """
    names = names_to_resolve(policy.rules)
    if not names:
        return ()
    import socket  # only a policy that refuses names needs these
    import threading
    import time

    found: dict[str, tuple[str, ...]] = {}

    def resolve(name: str) -> None:
        try:
            answers = socket.getaddrinfo(name, None, type=socket.SOCK_STREAM)
        except (OSError, UnicodeError):
            return
        found[name] = tuple(sorted({str(answer[4][0]) for answer in answers}))

    threads = [threading.Thread(target=resolve, args=(name,), daemon=True) for name in names]
    for thread in threads:
        thread.start()
    # What is not answered in time counts as unresolved: its rule then refuses more, never less.
    until = time.monotonic() + _RESOLVING
    for thread in threads:
        thread.join(max(0.0, until - time.monotonic()))
    return tuple(sorted(found.copy().items()))
