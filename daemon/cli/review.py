"""``safeclaw agent review``: who may do what, by which policy, since when."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import click

from safeclaw.daemon import control
from safeclaw.daemon.cli import asking
from safeclaw.errors import BrokerError
from safeclaw.policies.model import printable


@click.command(
    name="review",
    help="Review who may do what, by which policy, since when, and on which keys.\n\n"
    "That it was made is a record, with the SHA-256 of what --json prints: keep that file as "
    "evidence.",
)
@click.option("--why", default="", metavar="TEXT", help="The occasion, for the record.")
@asking.common
def review_command(why: str, broker: str, as_json: bool) -> int:
    """Print the review; warnings on standard error."""
    found: dict[str, str] = asking.ask(broker, control.Review(why), 30.0)
    if hashlib.sha256(found["text"].encode()).hexdigest() != found["sha256"]:
        raise BrokerError("the review is not the one that was recorded", hint="try again")
    review: dict[str, Any] = json.loads(found["text"])
    if as_json:
        click.echo(found["text"], nl=False)
    else:
        for agent in review["agents"]:
            for line in _lines(agent):
                click.echo(printable(line))
        for agent in review["removed"]:
            name, owner = agent["name"], agent["owner"]
            click.echo(printable(f"{name}: removed {asking.day(agent['removed'])} (of {owner})"))
        count = len(review["agents"])
        click.echo(f"{count} {'agent' if count == 1 else 'agents'}; sha256 {found['sha256']}")
    for agent in review["agents"]:
        for warning, hint in _warnings(agent, review):
            click.echo(f"safeclaw: {printable(warning)}\nhint: {printable(hint)}", err=True)
    return 0


def _lines(agent: dict[str, Any]) -> list[str]:
    policy = agent["policy"]
    user = agent["user_name"] or "any user"
    made = f"registered {asking.day(agent['created'])}"
    lines = [f"{agent['name']}: of {agent['owner']}, {agent['environment']}, run by {user}, {made}"]
    held = f"  policy {policy['name']} since {asking.day(policy['agent_has_it_since'])}"
    if "problem" in policy:
        lines.append(f"{held}: not in force, so it may nothing: {policy['problem']}")
    else:
        since = asking.day(policy["in_force_since"])
        lines.append(f"{held}: {policy['sha256'][:12]}, in force since {since}")
        lines += [f"    {line}" for line in policy["meaning"]]
    for key in agent["keys"]:
        used = f"used {asking.day(key['used'])}" if key["used"] else "never used"
        end = asking.day(key["revoked"] or key["expires"])
        ends = {"valid": "expires", "expired": "expired", "revoked": "revoked"}[key["state"]]
        lines.append(f"  key {key['id']}: {key['age_days']} days old, {used}, {ends} {end}")
    due = "OVERDUE since" if agent["overdue"] else "due"
    lines.append(f"  rotation {due} {asking.day(agent['rotation_due'])}")
    last = f"; the last: {agent['last_session']}" if agent["last_session"] else ""
    lines.append(f"  sessions now: {len(agent['sessions'])}{last}")
    return lines


def _warnings(agent: dict[str, Any], review: dict[str, Any]) -> list[tuple[str, str]]:
    name, keys = agent["name"], agent["keys"]
    found: list[tuple[str, str]] = []
    if agent["overdue"]:
        found.append(
            (
                f"{name}: its newest key is older than {review['rotation_days']} days",
                f"safeclaw agent rotate-key {name} --overlap 1d",
            )
        )
    if not any(key["state"] == "valid" for key in keys):
        found.append(
            (f"{name}: no key is valid any more", f"safeclaw agent remove {name}, if it is done")
        )
    elif agent["last_used"] is None and agent["overdue"]:
        found.append((f"{name}: was never used", f"safeclaw agent remove {name}"))
    return found
