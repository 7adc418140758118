"""What the verbs that judge attempts by a policy share: finding it, and where targets lead."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click
from msgspec.structs import replace

from safeclaw.daemon import places
from safeclaw.policies import source
from safeclaw.policies.compiled import CompiledPolicy, compile_policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import FileTarget, ProgramTarget, SocketTarget, Target


def compiled_for(ref: str | None, directory: Path) -> tuple[str, CompiledPolicy]:
    """Return the name of a policy, and the policy ready for a workspace."""
    name, text = source.find(ref, directory)
    parents = source.gather(name, text)
    policy = load(text, name=name, parents=parents)
    files = (name, *(parent.name for parent in parents))
    where = source.context(
        policy,
        workspace=directory,
        home=places.home(),
        read_only=tuple(file for file in files if file and os.path.exists(file)),
        path=os.environ.get("PATH"),
    )
    return name, compile_policy(policy, where)


def canonical(target: Target) -> Target:
    """Return the target by where it leads, as a running session would judge it."""
    match target:
        case FileTarget(path, to):
            real_to = None if to is None else os.path.realpath(to)
            return FileTarget(os.path.realpath(path), real_to)
        case SocketTarget(path):
            return SocketTarget(os.path.realpath(path))
        case ProgramTarget(program, argv):
            if "/" not in argv[0]:
                found = shutil.which(argv[0])
                program = found or f"/usr/bin/{argv[0]}"
            return replace(target, program=os.path.realpath(program))
        case _:
            return target


def started_with(compiled: CompiledPolicy, target: Target, given: dict[str, str]) -> Target:
    """Return the target as it would be with these variables, besides those that are pinned."""
    if not isinstance(target, ProgramTarget):
        return target
    return replace(target, variables=compiled.variables.refused_with(given))


def echo_json(value: object) -> None:
    """Print one JSON value."""
    import msgspec

    click.echo(msgspec.json.encode(value))
