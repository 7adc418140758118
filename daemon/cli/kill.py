"""``safeclaw kill`` and ``safeclaw resume``: the kill switch."""

from __future__ import annotations

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking, stopping
from safeclaw.errors import UsageError
from safeclaw.policies.model import printable


def _whom(name: str | None, everybody: bool) -> str | None:
    if (name is None) == (not everybody):
        raise UsageError("name an agent (or a session), or give --all", hint="safeclaw ps")
    return name


@click.command(help="Stop an agent, or all, at once; they stay down until resumed.")
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="Every agent.")
@click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")
@asking.common
def kill_command(name: str | None, everybody: bool, why: str, broker: str, as_json: bool) -> int:
    """Throw the switch, and wait until the processes are gone."""
    return stopping.stop(stopping.Order(_whom(name, everybody), why, broker, as_json))


@click.command(help="Let an agent, or all, run again.")
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="Every agent.")
@click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")
@asking.common
def resume_command(name: str | None, everybody: bool, why: str, broker: str, as_json: bool) -> int:
    """Lift the orders."""
    agent = _whom(name, everybody)
    found = asking.ask(broker, control.Resume(agent, why))
    whom = "every agent" if agent is None else printable(agent)
    return asking.tell(found, f"{whom} may run again", as_json)
