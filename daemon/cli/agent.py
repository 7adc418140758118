"""``safeclaw agent``: registered agents and their keys (CC6.2, CC6.3)."""

from __future__ import annotations

import sys
from typing import Any, Final

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking
from safeclaw.daemon.cli.lazy import LazyGroup
from safeclaw.policies.model import printable

_LIFETIME = click.option(
    "--expires",
    "lifetime",
    type=asking.DURATION,
    default="180d",
    show_default=True,
    metavar="TIME",
    help="How long the key is good for.",
)
_WHY = click.option("--why", default="", metavar="TEXT", help="The reason, for the record.")


#: Subcommands that live elsewhere, and are imported when they are named.
_ELSEWHERE: Final = {"review": "safeclaw.daemon.cli.review:review_command"}


@click.group(
    cls=LazyGroup,
    elsewhere=_ELSEWHERE,
    help="Registered agents: who they are, whose they are, and their keys.",
)
def agent_group() -> None:
    """Hold the subcommands."""


def _show_key(found: dict[str, Any], as_json: bool) -> int:
    if as_json:
        asking.echo_json(found)
        return 0
    # The key alone on stdout, so that it can be sent to where it is kept.
    click.echo(f"safeclaw: key {found['key']} of {found['name']}; it is shown this once:", err=True)
    click.echo(found["api_key"])
    if sys.stdout.isatty():
        click.echo("hint: SAFECLAW_API_KEY, or the unit's credential api-key, holds it", err=True)
    return 0


@agent_group.command(help="Register an agent; its key is printed, once.")
@click.argument("name")
@click.option("--policy", required=True, metavar="NAME|FILE", help="What it may do.")
@click.option("--owner", required=True, metavar="WHO", help="The person who answers for it.")
@click.option("--environment", required=True, metavar="WORD", help="production, staging, …")
@click.option("--user", metavar="USER", help="The only user that may run it.")
@_LIFETIME
@asking.common
def add(
    name: str,
    policy: str,
    owner: str,
    environment: str,
    user: str | None,
    lifetime: int,
    broker: str,
    as_json: bool,
) -> int:
    """Register an agent."""
    request = control.AddAgent(name, policy, owner, environment, lifetime, user)
    with asking.connected(broker) as found:
        made = found.ask(request)
        if broker == "auto" and found.socket is None:
            # Meant for the system's, while that was not up, it would not be found there.
            click.echo(f"safeclaw: with your own broker, state {found.state}", err=True)
    return _show_key(made, as_json)


@agent_group.command(name="list", help="All agents, with the age of their keys.")
@asking.common
def list_command(broker: str, as_json: bool) -> int:
    """Print the agents."""
    found: list[dict[str, Any]] = asking.ask(broker, control.Agents())
    if as_json:
        asking.echo_json(found)
        return 0
    rows: list[tuple[object, ...]] = []
    for one in found:
        valid = [key for key in one["keys"] if key["state"] == "valid"]
        due = asking.day(one["rotation_due"]) + (" OVERDUE" if one["overdue"] else "")
        rows.append(
            (
                one["name"],
                one["owner"],
                one["environment"],
                one["policy"],
                asking.day(one["created"]),
                f"{len(valid)} valid",
                due,
                one["sessions"],
            )
        )
    asking.table(
        ("agent", "owner", "environment", "policy", "since", "keys", "rotation due", "sessions"),
        rows,
    )
    for one in found:
        if one["overdue"]:
            click.echo(
                f"safeclaw: {one['name']}: its key is past its rotation\n"
                f"hint: safeclaw agent rotate-key {one['name']} --overlap 1d",
                err=True,
            )
    return 0


@agent_group.command(help="One agent, with every key it had.")
@click.argument("name")
@asking.common
def show(name: str, broker: str, as_json: bool) -> int:
    """Print one agent."""
    (found,) = asking.ask(broker, control.Agents(name))
    if as_json:
        asking.echo_json(found)
        return 0
    for field in ("name", "owner", "environment", "policy", "user", "sessions"):
        click.echo(f"{field}: {printable(str(found[field]))}")
    rows: list[tuple[object, ...]] = [
        (
            key["id"],
            key["state"],
            asking.day(key["created"]),
            asking.day(key["expires"]),
            asking.day(key["used"]),
        )
        for key in found["keys"]
    ]
    asking.table(("key", "state", "made", "expires", "last used"), rows)
    return 0


@agent_group.command(name="rotate-key", help="Make a new key, and let the old ones end.")
@click.argument("name")
@click.option(
    "--overlap",
    type=asking.DURATION,
    default=0,
    metavar="TIME",
    help="How long the old keys still open sessions.",
)
@_LIFETIME
@asking.common
def rotate_key(name: str, overlap: int, lifetime: int, broker: str, as_json: bool) -> int:
    """Rotate an agent's key."""
    return _show_key(asking.ask(broker, control.RotateKey(name, lifetime, overlap)), as_json)


@agent_group.command(help="Revoke a key (else all of them), and end what runs on it.")
@click.argument("name")
@click.option("--key", metavar="ID", help="Only this one.")
@_WHY
@asking.common
def revoke(name: str, key: str | None, why: str, broker: str, as_json: bool) -> int:
    """Revoke keys."""
    found = asking.ask(broker, control.RevokeKey(name, key, why), 15.0)
    keys, ended = ", ".join(found["keys"]), found["sessions"]
    return asking.tell(found, f"{printable(name)}: revoked {keys}; {ended} sessions ended", as_json)


@agent_group.command(help="Revoke all keys and take the agent off the list.")
@click.argument("name")
@_WHY
@asking.common
def remove(name: str, why: str, broker: str, as_json: bool) -> int:
    """Remove an agent."""
    found = asking.ask(broker, control.RemoveAgent(name, why), 15.0)
    return asking.tell(
        found, f"{printable(name)}: removed; {found['sessions']} sessions ended", as_json
    )


@agent_group.command(name="set-policy", help="Give an agent another policy, from now on.")
@click.argument("name")
@click.argument("policy")
@asking.common
def set_policy(name: str, policy: str, broker: str, as_json: bool) -> int:
    """Change an agent's policy."""
    found = asking.ask(broker, control.SetPolicy(name, policy))
    return asking.tell(found, f"{printable(name)}: {printable(policy)}", as_json)
