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
    else:
        for line in _lines(found):
            click.echo(printable(line))
    return _FAULT if found["fault"] else 0


def _lines(found: dict[str, Any]) -> list[str]:
    whose = "the system's" if found["system"] else "your own"
    up = asking.span(found["uptime"])
    age = "" if found["head_age"] is None else f", the newest {asking.span(found['head_age'])} ago"
    yours = "" if "refusals" in found else " of yours"
    lines = [
        f"broker: {whose}, pid {found['pid']}, up {up}",
        f"journal: chain {found['chain']}, {found['head'] + 1} records in {found['state']}{age}",
        f"sessions{yours}: {found['sessions']}; decisions: {found['decisions']}, of them denied: "
        f"{found['denials']}; questions that wait: {found['approvals']}",
    ]
    if not yours:
        lines += _whole(found)
    for order in found["killed"]:
        whom = order.get("agent") or "every agent"
        if order.get("uid") is not None:
            whom += f" of uid {order['uid']}"
        why = f": {order['why']}" if order.get("why") else ""
        lines.append(f"kill switch: {whom} is down since {order['since']}{why}")
    if found["fault"]:
        lines.append(f"FAULT, nothing is allowed: {found['fault']}")
    return lines


def _whole(found: dict[str, Any]) -> list[str]:
    """Return what only those see who see everything."""
    journald, alerts = found["journald"], found["alerts"]
    epoch = "cannot be read" if found["key_epoch"] is None else found["key_epoch"]
    behind = f"{journald['behind']} records behind" if journald["behind"] else "up to date"
    problem = f" ({journald['problem']})" if journald["problem"] else ""
    lines = [f"signing key: epoch {epoch}; journald: {behind}{problem}"]
    lines.append(f"refused for who asked: {found['refusals']}; agents: {found['agents']}")
    if found["keys_due"]:
        lines.append(f"keys due for rotation: {', '.join(found['keys_due'])}")
    for ref, sha256 in sorted(found["policies"].items()):
        lines.append(f"policy in force: {ref} {sha256}")
    for ref, sha256 in sorted(found["policies_waiting"].items()):
        lines.append(f"waits for two people: {ref} {sha256}")
    for ref, problem in sorted(found["policy_problems"].items()):
        said = "; ".join(problem.splitlines())
        lines.append(f"policy {ref}: what its file says is not in force: {said}")
    if alerts["configured"] or alerts["raised"]:
        hook = "" if alerts["configured"] else ", and no alert_hook is set"
        lines.append(f"alerts: {alerts['raised']}, hooks started: {alerts['sent']}{hook}")
    if alerts["failed"]:
        lines.append(f"hooks that failed: {alerts['failed']}, the last: {alerts['problem']}")
    return lines
