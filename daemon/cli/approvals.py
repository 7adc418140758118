"""``safeclaw approvals``: what waits for a person, and that person's answer."""

from __future__ import annotations

from typing import Any

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking
from safeclaw.daemon.journal.text import target_text
from safeclaw.errors import UsageError
from safeclaw.policies.model import printable


@click.group(invoke_without_command=True, help="Attempts that wait for a person.")
@asking.common
@click.pass_context
def approvals_group(ctx: click.Context, broker: str, as_json: bool) -> None:
    """List, without a subcommand."""
    if ctx.invoked_subcommand is None:
        ctx.invoke(list_command, broker=broker, as_json=as_json)


@approvals_group.command(name="list", help="What waits, oldest first.")
@asking.common
def list_command(broker: str, as_json: bool) -> int:
    """Print the questions."""
    found: list[dict[str, Any]] = asking.ask(broker, control.ListApprovals())
    if as_json:
        asking.echo_json(found)
        return 0
    if not found:
        click.echo("nothing waits")
        return 0
    rows: list[tuple[object, ...]] = [
        (
            one["approval"],
            one["agent"],
            one["waiting"],
            f"{one['left_seconds']} s",
            one["rule"],
            f"{one['action']} {target_text(one['target'])}",
        )
        for one in found
    ]
    asking.table(("approval", "agent", "waiting", "left", "rule", "attempt"), rows)
    return 0


@approvals_group.command(help="Say yes: once, or for longer; never to more than what is shown.")
@click.argument("approval")
@click.option("--session", "session", is_flag=True, help="As often as this session tries it.")
@click.option(
    "--for",
    "seconds",
    type=asking.DURATION,
    default=0,
    metavar="TIME",
    help="For so long, in this agent's later sessions too: 30m, 12h, 2d.",
)
@click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")
@asking.common
def approve(
    approval: str, session: bool, seconds: int, why: str, broker: str, as_json: bool
) -> int:
    """Approve one question."""
    if session and seconds:
        raise UsageError("give --session or --for, not both")
    scope = "session" if session else "time" if seconds else "once"
    found = asking.ask(broker, control.Approve(approval, scope, seconds, why))
    return asking.tell(found, f"{printable(approval)}: approved ({scope})", as_json)


@approvals_group.command(help="Say no.")
@click.argument("approval")
@click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")
@asking.common
def deny(approval: str, why: str, broker: str, as_json: bool) -> int:
    """Refuse one question."""
    found = asking.ask(broker, control.Refuse(approval, why))
    return asking.tell(found, f"{printable(approval)}: refused", as_json)
