"""``safeclaw doctor``: what this host offers, and what to do about what is missing."""

from __future__ import annotations

import os
from pathlib import Path

import click

from safeclaw.daemon import client
from safeclaw.policies.model import printable


@click.command(
    name="doctor",
    help="Say, layer by layer, what this host offers, and what to do about what is missing.\n\n"
    "Exit status: 0 when safeclaw run works in full isolation, else 1.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def doctor_command(as_json: bool) -> int:
    """Print a line for each layer, and a hint where there is something to do."""
    from safeclaw.daemon import probes

    findings = probes.probe(Path(client.state_directory(dict(os.environ))))
    absent = [finding for finding in findings if finding.state is probes.State.MISSING]
    missing = [finding for finding in absent if finding.layer not in probes.SHARED_LAYERS]
    without = [finding for finding in absent if finding.layer not in probes.NAMESPACE_LAYERS]
    if as_json:
        import msgspec

        value = {
            "full_isolation": not missing,
            "landlock_isolation": not without,
            "layers": findings,
        }
        click.echo(msgspec.json.encode(value))
        return 1 if missing else 0
    for finding in findings:
        click.echo(f"{finding.state:8} {finding.layer:11} {printable(finding.found)}")
        if finding.hint:
            click.echo(f"{'':20} hint: {finding.hint}")
    if missing:
        names = ", ".join(finding.layer for finding in missing)
        click.echo(f"safeclaw run does not work here in full isolation: {names}")
    else:
        click.echo("safeclaw run works here in full isolation")
    if without:
        names = ", ".join(finding.layer for finding in without)
        click.echo(f"safeclaw run --isolation landlock does not work here: {names}")
    else:
        click.echo("safeclaw run --isolation landlock works here")
    return 1 if missing else 0
