"""``safeclaw audit summary``: what happened in a period."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.cli.audit_export import query
from safeclaw.daemon.evidence.pages import draw, html
from safeclaw.daemon.evidence.summary import summarize
from safeclaw.daemon.journal.filter import Filter


@click.command(name="summary", help="Summarise a period: decisions, denials, policies, drift.")
@click.option("--since", metavar="TIME", default="quarter", show_default=True,
              help="UTC: '30 days', 'quarter', 'yesterday', '2026-03-01'.")  # fmt: skip
@click.option("--until", metavar="TIME", help="Up to then.")
@click.option("--agent", metavar="NAME", help="Only this agent.")
@click.option("--html", "as_html", is_flag=True, help="A page that prints well.")
@common
def summary_command(
    state: Path, as_json: bool, since: str, until: str | None, agent: str | None, as_html: bool
) -> None:
    """Print the summary."""
    summary = summarize(state / "journal", query(since, until, Filter(agent=agent)))
    if as_json:
        click.echo(msgspec.json.encode(summary))
    elif as_html:
        click.echo(html(summary), nl=False)
    else:
        from rich.console import Console

        console = Console(highlight=False, soft_wrap=True)
        draw(summary, console)
        if not summary.records:
            fewer = ", or leave out --agent" if agent is not None else ""
            click.echo(f"hint: widen --since and --until{fewer}; `audit show --last 1` dates the "
                       "newest", err=True)  # fmt: skip
