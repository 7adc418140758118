"""``safeclaw audit evidence``: one package for an auditor, and its check elsewhere."""

from __future__ import annotations

from pathlib import Path

import click
import msgspec

from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.cli.audit_export import query
from safeclaw.daemon.cli.unwinding import unwinding
from safeclaw.daemon.evidence.package import build, check
from safeclaw.daemon.journal.keys import read_public_keys
from safeclaw.daemon.journal.report import Report
from safeclaw.daemon.journal.text import safe
from safeclaw.errors import JournalError, UsageError


class _Default(click.Group):
    """``evidence`` without a verb makes a package."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] != "--help"):
            args = ["make", *args]
        return super().parse_args(ctx, args)


@click.group(
    name="evidence",
    cls=_Default,
    short_help="Pack a period for an auditor, or check a package.",
    help="Pack a period for an auditor, or check a package.\n\nWithout COMMAND it is make: "
    "safeclaw audit evidence --output FILE",
)
def evidence_group() -> None:
    """Hold the subcommands."""


@evidence_group.command(help="Pack the chain, the period's records, summary, policies and keys.")
@click.option("--output", required=True, metavar="FILE", help="The zip file to write.")
@click.option("--since", metavar="TIME", default="quarter", show_default=True,
              help="UTC: '30 days', 'quarter', 'yesterday', '2026-03-01'.")  # fmt: skip
@click.option("--until", metavar="TIME", help="Up to then.")
@click.option(
    "--repository", metavar="DIR",
    help="Whose .safeclaw/ and Git history hold the policies; else this directory.",
)  # fmt: skip
@common
def make(
    state: Path, as_json: bool, output: str, since: str, until: str | None, repository: str | None
) -> None:
    """Write the package; the exit status is the verification's."""
    place = Path(repository) if repository is not None else Path.cwd()
    if not place.is_dir():
        raise UsageError(f"{place}: no such directory", hint="look for a slip in the path")
    wanted = query(since, until)

    def said(step: str) -> None:
        if not as_json:
            click.echo(f"safeclaw: {step}", err=True)

    with unwinding():
        report = build(state, wanted, Path(output), repository=place, on_step=said)
    _show(Path(output), report, as_json)


@evidence_group.command(
    help="Check a package, here or on any machine.\n\nExit status: 0 nothing wrong, "
    "1 tampered with, 2 usage, 3 incomplete or unreadable."
)
@click.argument("file", metavar="FILE")
@click.option("--public-key", metavar="FILE", help="Keys that did not come with the package.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value.")
def verify(file: str, public_key: str | None, as_json: bool) -> None:
    """Verify the manifest, the signature, the chain and what is said of it."""

    def tell(step: str) -> None:
        if not as_json:
            click.echo(f"safeclaw: {step}", err=True)

    try:
        given = read_public_keys(Path(public_key)) if public_key is not None else None
    except JournalError as error:
        raise UsageError(error.message, hint=error.hint) from error
    try:
        with unwinding():
            report = check(Path(file), given, tell)
    except JournalError as error:
        said = error.message.removeprefix(f"{file}: ")
        click.echo(f"{safe(file)}: incomplete or unreadable: {safe(said)}")
        click.get_current_context().exit(3)
    _show(Path(file), report, as_json)


def _show(file: Path, report: Report, as_json: bool) -> None:
    if as_json:
        value = {
            "file": str(file),
            "status": report.status,
            "verdict": report.headline,
            "finding": msgspec.to_builtins(report.finding),
            "chain": report.chain,
            "records": report.records - report.pruned,
            "checked": report.checked(),
            "cannot_exclude": report.open_questions(),
        }
        click.echo(msgspec.json.encode(value))
    else:
        click.echo(f"{safe(str(file))}: {report.headline}")
        if report.finding is not None:
            click.echo(f"  first fault: {safe(str(report.finding))}")
        for line in report.checked():
            click.echo(f"  checked: {safe(line)}")
        for line in report.open_questions() if report.finding is None else []:
            click.echo(f"  cannot exclude: {safe(line)}")
    click.get_current_context().exit(report.exit_status)
