"""``safeclaw audit export`` and ``audit sample``: records for other tools and for auditors."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from safeclaw.daemon.cli.audit import common, filters, period_options
from safeclaw.daemon.cli.unwinding import unwinding
from safeclaw.daemon.evidence import period
from safeclaw.daemon.evidence.export import PROOFS, export
from safeclaw.daemon.evidence.formats import FORMATS
from safeclaw.daemon.evidence.sample import draw
from safeclaw.daemon.evidence.selection import Query
from safeclaw.daemon.evidence.whole import whole, writable
from safeclaw.daemon.journal.filter import EVERY, Filter
from safeclaw.daemon.journal.text import safe, summary
from safeclaw.errors import UsageError


def query_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that say which records are meant."""
    return period_options(filters(command))


def query(since: str | None, until: str | None, wanted: Filter = EVERY) -> Query:
    """Return the query of the options.  UsageError."""
    return Query(period.parse(since, until, datetime.now(UTC)), wanted)


@click.command(name="export", help="Write the records of a period in another tool's format.")
@click.option(
    "--format", "format_name", type=click.Choice(list(FORMATS)), default="jsonl",
    show_default=True, help="The format.",
)  # fmt: skip
@click.option(
    "--output",
    metavar="FILE",
    help="Write there, and the proofs to FILE.manifest.json; else to stdout.",
)
@click.option("--manifest", "manifest_file", metavar="FILE", help="Where the manifest goes.")
@query_options
@common
def export_command(
    state: Path,
    as_json: bool,
    format_name: str,
    output: str | None,
    manifest_file: str | None,
    since: str | None,
    until: str | None,
    wanted: Filter,
) -> None:
    """Write the records, then say how many there were and how many were left out."""
    asked = query(since, until, wanted)
    journal = state / "journal"
    with unwinding(), contextlib.ExitStack() as stack:
        if output is None:
            manifest = export(journal, asked, format_name, sys.stdout.write, prove=PROOFS)
            sys.stdout.flush()
        else:
            manifest_file = manifest_file or f"{output}.manifest.json"
            if Path(manifest_file).resolve() == writable(Path(output)):
                raise UsageError(
                    f"--manifest {safe(manifest_file)}: that is the export itself",
                    hint="without --manifest it goes to FILE.manifest.json",
                )
            writable(Path(manifest_file))
            partial = stack.enter_context(whole(Path(output)))
            with partial.open("w", encoding="utf-8", newline="") as stream:
                manifest = export(journal, asked, format_name, stream.write)
        if manifest_file is not None:
            # before an older export is replaced: the two go together
            with whole(Path(manifest_file)) as named:
                named.write_bytes(msgspec.json.format(msgspec.json.encode(manifest)))
    if as_json and output is not None:
        click.echo(
            msgspec.json.encode({"records": manifest.records, "left_out": manifest.left_out})
        )
    total = manifest.records + manifest.left_out
    said = f"{manifest.records} of the journal's {total} records, {asked.period.text()}"
    click.echo(f"safeclaw: exported {said}", err=True)


@click.command(
    name="sample",
    short_help="Draw records at random, with proofs.",
    help="Draw records at random, the same ones for the same seed, with proofs.\n\n"
    "Who audits chooses the seed, so that nobody else chooses the records: "
    "--seed 'any words of yours'.",
)
@click.option("--n", "count", type=click.IntRange(1, 100_000), default=25, show_default=True,
              metavar="N", help="How many.")  # fmt: skip
@click.option("--seed", required=True, metavar="TEXT", help="The auditor's own choice.")
@query_options
@common
def sample_command(
    state: Path,
    as_json: bool,
    count: int,
    seed: str,
    since: str | None,
    until: str | None,
    wanted: Filter,
) -> None:
    """Print the sample; as JSON with the lines and their proofs."""
    try:
        seed.encode()
    except UnicodeEncodeError:
        raise UsageError(f"--seed {safe(seed)}: not UTF-8", hint="any words of yours do") from None
    asked = query(since, until, wanted)
    sample = draw(state / "journal", asked, count, seed)
    if as_json:
        click.echo(msgspec.json.encode(sample))
        return
    from safeclaw.daemon.journal.record import decode

    for item in sample.records:
        record = decode(item.line.encode())
        proof = f"proof of {len(item.proof.path)} hashes" if item.proof else "no checkpoint yet"
        click.echo(f"{item.seq:>7} {safe(record.ts)} {summary(record)} ({proof})")
    said = f"{len(sample.records)} of {sample.population} records {asked.period.text()}"
    click.echo(f"safeclaw: {said}, seed {safe(seed)}; --json prints the proofs", err=True)
    if not sample.records:
        click.echo("hint: widen --since and --until", err=True)
