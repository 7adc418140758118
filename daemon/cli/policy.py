"""``safeclaw policy``: check policies, and explain what they would decide."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import click

from safeclaw.errors import PolicyError, UsageError
from safeclaw.policies import explain as words
from safeclaw.policies import source
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.loader import load
from safeclaw.policies.model import Attempt, FileTarget, ProgramTarget, SocketTarget, Target


@click.group(name="policy", help="Check policies, and explain what they decide.")
def policy_group() -> None:
    """Group the policy commands."""


@policy_group.command(name="check", help="Say everything that is wrong with policy files.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
def check_command(files: tuple[str, ...]) -> int:
    """Print each problem as file:line:column: message; 1 when there are any."""
    status = 0
    for file in files:
        try:
            policy = source.load_file(Path(file))
        except PolicyError as error:
            click.echo(error.message)
            status = 1
        else:
            click.echo(f"{file}: {_count(len(policy.rules))}, no problems", err=True)
    return status


@policy_group.command(
    name="explain",
    help="Say what a policy decides on ACTION and TARGET, by which rule, and why.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
)
@click.option("--policy", "ref", metavar="FILE|NAME", help="The policy; else the workspace's own.")
@click.option("--workspace", metavar="DIR", default=".", help="The workspace; else this directory.")
@click.argument("action")
@click.argument("target", nargs=-1, type=click.UNPROCESSED, metavar="TARGET...")
def explain_command(ref: str | None, workspace: str, action: str, target: tuple[str, ...]) -> int:
    """Print the verdict, the rule, its line, the reason, and what would allow it."""
    directory = Path(os.path.realpath(workspace))
    if not directory.is_dir():
        raise UsageError(f"{workspace}: no such directory")
    name, text = source.find(ref, directory)
    policy = load(text, name=name)
    where = source.context(
        policy,
        workspace=directory,
        home=Path.home(),
        read_only=(name,) if os.path.exists(name) else (),
        path=os.environ.get("PATH"),
    )
    meant = _canonical(words.parse_target(action, list(target), str(directory)))
    for line in words.explain(compile_policy(policy, where), Attempt(action, meant), name):
        click.echo(line)
    return 0


@policy_group.command(name="show", help="Print a policy: a file, or a shipped one by name.")
@click.argument("ref", required=False, metavar="[FILE|NAME]")
def show_command(ref: str | None) -> int:
    """Print the text of a policy; without a name, list the shipped ones."""
    if ref is None:
        for name in source.preset_names():
            description = source.load_file(source.PRESETS / f"{name}.yaml").description
            click.echo(f"{name:24}{description}")
        return 0
    _, text = source.find(ref, Path.cwd())
    click.echo(text.decode("utf-8", "replace"), nl=not text.endswith(b"\n"))
    return 0


def check(args: list[str]) -> int:
    """Run ``safeclaw policy check`` and return its exit status."""
    return _run(check_command, args)


def explain(args: list[str]) -> int:
    """Run ``safeclaw policy explain`` and return its exit status."""
    return _run(explain_command, args)


def _run(command: click.Command, args: list[str]) -> int:
    name = f"safeclaw policy {command.name}"
    try:
        status = command.main(args, prog_name=name, standalone_mode=False)
    except click.ClickException as error:
        raise UsageError(error.format_message(), hint=f"try '{name} --help'") from None
    return status if isinstance(status, int) else 0


def _canonical(target: Target) -> Target:
    """Return the target by where it leads, as a running session would judge it."""
    match target:
        case FileTarget(path, to):
            real_to = None if to is None else os.path.realpath(to)
            return FileTarget(os.path.realpath(path), real_to)
        case SocketTarget(path):
            return SocketTarget(os.path.realpath(path))
        case ProgramTarget(program, argv, interpreters):
            if "/" not in argv[0]:
                found = shutil.which(argv[0])
                program = found or f"/usr/bin/{argv[0]}"
            return ProgramTarget(os.path.realpath(program), argv, interpreters)
        case _:
            return target


def _count(rules: int) -> str:
    return "1 rule" if rules == 1 else f"{rules} rules"
