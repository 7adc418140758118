"""``safeclaw kill`` and ``safeclaw resume``: the kill switch."""

from __future__ import annotations

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking
from safeclaw.errors import BrokerGoneError, UsageError
from safeclaw.policies.model import printable

#: Sessions are given ten seconds to be gone; the broker answers then at the latest.
_PATIENCE = 15.0


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
    from safeclaw.daemon.cli import lastresort

    agent = _whom(name, everybody)
    try:
        found = asking.ask(broker, control.Kill(agent, why), _PATIENCE)
    except BrokerGoneError as problem:
        return lastresort.kill(agent, why, problem)
    if as_json:
        asking.echo_json(found)
    else:
        count = len(found["sessions"])
        whom = "every agent" if agent is None else printable(agent)
        again = "--all" if agent is None else printable(agent)
        click.echo(f"{whom}: {count} sessions stopped; down until safeclaw resume {again}")
        if agent is not None and not count:
            click.echo(
                "hint: nothing of that name was running; safeclaw ps, safeclaw agent list", err=True
            )
    return 0


@click.command(help="Let an agent, or all, run again.")
@click.argument("name", required=False)
@click.option("--all", "everybody", is_flag=True, help="Every agent.")
@click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")
@asking.common
def resume_command(name: str | None, everybody: bool, why: str, broker: str, as_json: bool) -> int:
    """Lift the orders."""
    agent = _whom(name, everybody)
    found = asking.ask(broker, control.Resume(agent, why))
    if as_json:
        asking.echo_json(found)
    else:
        whom = "every agent" if agent is None else printable(agent)
        click.echo(f"{whom} may run again")
    return 0
