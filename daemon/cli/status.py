"""``safeclaw status``: how the broker is; the exit status says whether all is well."""

from __future__ import annotations

from typing import Any

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking
from safeclaw.policies.model import printable

#: Nothing is allowed: the broker's journal cannot be written.
_FAULT = 1


@click.command(help="How the broker is, and what stands against agents.")
@asking.common
def status_command(broker: str, as_json: bool) -> int:
    """Print the status; 1 when nothing can be allowed."""
    found: dict[str, Any] = asking.ask(broker, control.Status())
    if as_json:
        asking.echo_json(found)
        return _FAULT if found["fault"] else 0
    whose = "the system's" if found["system"] else "your own"
    click.echo(f"broker: {whose}, pid {found['pid']}, since {asking.day(found['since'])}")
    click.echo(f"journal: chain {found['chain']}, {found['head'] + 1} records in {found['state']}")
    click.echo(f"sessions: {found['sessions']}; questions that wait: {found['approvals']}")
    for order in found["killed"]:
        whom = order.get("agent") or "every agent"
        why = f": {order['why']}" if order.get("why") else ""
        click.echo(f"kill switch: {printable(whom)} is down since {order['since']}{printable(why)}")
    if found["fault"]:
        click.echo(f"FAULT, nothing is allowed: {printable(found['fault'])}")
        return _FAULT
    return 0
