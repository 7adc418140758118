"""``safeclaw policy``: check policies, explain, test and suggest them."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import click
from msgspec.structs import replace

from safeclaw.daemon import places
from safeclaw.daemon.cli.judging import canonical, compiled_for, echo_json, started_with
from safeclaw.daemon.cli.lazy import LazyGroup
from safeclaw.errors import PolicyError, UsageError
from safeclaw.policies import explain as words
from safeclaw.policies import render, source
from safeclaw.policies.compiled import compile_policy
from safeclaw.policies.context import Context
from safeclaw.policies.glob import GlobError
from safeclaw.policies.loader import check_action, load
from safeclaw.policies.model import Attempt, ProgramTarget

#: Subcommands that live elsewhere, and are imported when they are named.
_ELSEWHERE: Final = {
    "approve": "safeclaw.daemon.cli.policy_change:approve_command",
    "history": "safeclaw.daemon.cli.policy_history:history_command",
    "pending": "safeclaw.daemon.cli.policy_change:pending_command",
    "refuse": "safeclaw.daemon.cli.policy_change:refuse_command",
    "rollback": "safeclaw.daemon.cli.policy_change:rollback_command",
    "test": "safeclaw.daemon.cli.policy_cases:test_command",
    "text": "safeclaw.daemon.cli.policy_change:text_command",
}


@click.group(
    name="policy",
    cls=LazyGroup,
    elsewhere=_ELSEWHERE,
    help="Check policies, explain, test, compare and change them.",
)
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
@click.option("--env", "given", multiple=True, metavar="NAME=VALUE", help="The program's variable.")
@click.argument("action")
@click.argument("target", nargs=-1, type=click.UNPROCESSED, metavar="TARGET...")
def explain_command(
    ref: str | None, workspace: str, given: tuple[str, ...], action: str, target: tuple[str, ...]
) -> int:
    """Print the verdict, the rule, its line, the reason, and what would allow it."""
    directory = Path(os.path.realpath(workspace))
    if not directory.is_dir():
        raise UsageError(f"{workspace}: no such directory", hint="look for a slip in the path")
    try:
        check_action(action)
    except GlobError as error:
        raise UsageError(str(error), hint="such as file.read, shell.execute") from None
    name, compiled = compiled_for(ref, directory)
    meant = canonical(words.parse_target(action, list(target), str(directory)))
    variables = dict(_variable(text) for text in given)
    if variables and not isinstance(meant, ProgramTarget):
        raise UsageError("only a program has variables: --env is for shell.execute")
    meant = started_with(compiled, meant, variables)
    for line in words.explain(compiled, Attempt(action, meant), name):
        click.echo(line)
    return 0


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--env {text}: write NAME=VALUE")
    return name, value


@policy_group.command(
    name="show",
    help="Print the rules that are really in force under a policy: its own, those of the "
    "policies it extends, and the runtime's, in their order. Without a policy, list the "
    "shipped ones.",
)
@click.argument("ref", required=False, metavar="[FILE|NAME]")
@click.option("--source", "as_written", is_flag=True, help="Print the file as it is written.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def show_command(ref: str | None, as_written: bool, as_json: bool) -> int:
    """Print a policy, whole; the output is itself a policy."""
    if ref is None:
        described = {
            name: source.load_file(source.PRESETS / f"{name}.yaml").description
            for name in source.preset_names()
        }
        for name, description in described.items():
            click.echo(f"{name:24}{description}" if not as_json else "", nl=not as_json)
        if as_json:
            echo_json(described)
        return 0
    name, text = source.find(ref, Path.cwd())
    if as_written:
        click.echo(text.decode("utf-8", "replace"), nl=not text.endswith(b"\n"))
        return 0
    policy = load(text, name=name, parents=source.gather(name, text))
    # Without an interpreter's own directory, which differs from run to run.
    nowhere = Context(workspace=os.path.realpath("."), home=os.path.realpath(places.home()))
    rules = compile_policy(policy, nowhere).rules
    if as_json:
        echo_json(replace(policy, rules=rules))
        return 0
    for line in render.effective(policy, rules, name):
        click.echo(line)
    return 0


@policy_group.command(name="schema", help="Print the policy language as JSON Schema, for editors.")
def schema_command() -> int:
    """Print the schema."""
    from safeclaw.policies import schema

    click.echo(schema.text(), nl=False)
    return 0


@policy_group.command(
    name="suggest",
    help="Write a small policy that allows what a session did.\n\n"
    "Run the agent once with: safeclaw run --observe -- COMMAND. Without --session or --since, "
    "the newest session is taken.",
)
@click.option("--session", metavar="ID", help="This session.")
@click.option(
    "--since", metavar="WHEN", help="All since then, UTC: 2h, '3 days', 2026-01-31T12:00."
)
@click.option("--state", metavar="DIR", help="The state directory; else the default.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def suggest_command(
    session: str | None, since: str | None, state: str | None, as_json: bool
) -> int:
    """Print a policy; on stderr, what a person must look at."""
    from safeclaw.daemon.cli import suggest
    from safeclaw.daemon.cli.audit import default_state
    from safeclaw.daemon.evidence import period

    directory = Path(state) if state is not None else default_state()
    after = None if since is None else period.stamp(period.moment(since, datetime.now(UTC)))
    found = suggest.from_chain(directory / "journal", session, after)
    if as_json:
        echo_json(found)
        return 0
    click.echo(found.text, nl=False)
    for line in found.set_aside:
        click.echo(f"safeclaw: left out, look at it: {line}", err=True)
    return 0


@policy_group.command(
    name="diff",
    help="Say what NEW lets through that OLD did not, and the reverse.\n\n"
    "By the rules alone, and, with --since, over what the journal recorded: each attempt is "
    "decided again under both.\n\n"
    "Exit status, as diff(1): 0 no difference, 1 some (with --not-wider: only if NEW is wider, "
    "or cannot be shown not to be), 2 a wrong option, 125 other trouble.",
)
@click.argument("old", metavar="OLD")
@click.argument("new", metavar="NEW")
@click.option("--since", metavar="WHEN", help="Since then, UTC: '30 days', 2h, 2026-01-31.")
@click.option("--chain", "--state", "state", metavar="DIR", help="The state directory.")
@click.option("--agent", metavar="NAME", help="Only what this agent tried.")
@click.option("--not-wider", "gate", is_flag=True, help="Fail only when NEW may be wider.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def diff_command(
    old: str,
    new: str,
    since: str | None,
    state: str | None,
    agent: str | None,
    gate: bool,
    as_json: bool,
) -> int:
    """Print the difference in meaning."""
    from safeclaw.daemon.cli import difference
    from safeclaw.daemon.cli.audit import default_state
    from safeclaw.daemon.evidence import period

    directory = Path(state) if state is not None else default_state()
    before, after = difference.find(old, directory), difference.find(new, directory)
    replayed = None
    if since is not None or agent is not None or state is not None:
        start = "" if since is None else period.stamp(period.moment(since, datetime.now(UTC)))
        replayed = difference.replay(directory / "journal", before, after, start, agent)
    found = difference.difference(before, after, replayed)
    if as_json:
        echo_json(found)
    else:
        for line in difference.lines(found):
            click.echo(line)
    return int(found.wider if gate else found.any)


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


def _count(rules: int) -> str:
    return "1 rule" if rules == 1 else f"{rules} rules"
