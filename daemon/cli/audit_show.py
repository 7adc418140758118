"""``safeclaw audit show``: the records, from the journal's files or by way of the broker."""

from __future__ import annotations

import os
from collections.abc import Generator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import msgspec

from safeclaw.daemon import client, control
from safeclaw.daemon.cli.audit import (
    SYSTEM_STATE,
    common,
    filters,
    period_options,
    print_record,
    readable,
)
from safeclaw.daemon.cli.options import broker_choice
from safeclaw.daemon.evidence import period
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.filter import Filter
from safeclaw.daemon.journal.record import MAX_INT, decode
from safeclaw.errors import BrokerError, UsageError


def _broker(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return broker_choice(value)


@click.command(
    name="show",
    help="Print the records, oldest first.\n\n"
    "Who may read the system's journal reads its files. Others ask the system's broker, and are "
    "shown the records of their own sessions; --broker embedded is one's own broker's journal.",
)
@common
@period_options
@filters
@click.option("--last", type=click.IntRange(0, MAX_INT), metavar="N", help="Only the newest N.")
@click.option(
    "--broker",
    default="auto",
    metavar="auto|system|embedded|SOCKET",
    callback=_broker,
    help="Whose journal; auto: the files that can be read, else the system's broker.",
)
@click.pass_context
def show_command(
    ctx: click.Context,
    state: Path,
    as_json: bool,
    wanted: Filter,
    since: str | None,
    until: str | None,
    last: int | None,
    broker: str,
) -> None:
    """Print the records that pass the filters."""
    meant = period.parse(since, until, datetime.now(UTC))
    wanted = msgspec.structs.replace(
        wanted,
        since=period.stamp(meant.since) if meant.since is not None else None,
        until=period.stamp(meant.until) if meant.until is not None else None,
    )
    given = ctx.get_parameter_source("state") is not click.core.ParameterSource.DEFAULT
    if given and broker != "auto":
        raise UsageError("give --state or --broker, not both")
    if last is not None and last > control.LAST_MAX and broker not in ("auto", "embedded"):
        raise UsageError(
            f"--last {last}: a broker shows {control.LAST_MAX} records at most",
            hint="--since, --session, --agent, --action, --decision and --type choose among them",
        )
    own = client.state_directory(dict(os.environ))
    found = None if given else _connected(broker, own)
    if found is None:
        journal = (own if broker == "embedded" else state) / "journal"
        for record in reader.read(journal, wanted, last=last):
            print_record(record, as_json)
        return
    if last is not None:
        last = min(last, control.LAST_MAX)
    try:
        request = control.Records(
            session=wanted.session,
            agent=wanted.agent,
            action=wanted.action,
            decision=wanted.decision,
            kind=wanted.type,
            since=wanted.since,
            until=wanted.until,
            last=last,
        )
        end = _print_all(found.records(request), as_json)
    finally:
        found.channel.close()
    if end["own"]:
        click.echo("safeclaw: these are the records of your own sessions", err=True)


def _connected(broker: str, own: Path) -> client.Client | None:
    """Return a connection to the broker to ask; None where files are read.  BrokerError."""
    if broker == "embedded" or (broker == "auto" and readable(SYSTEM_STATE)):
        return None
    if broker not in ("auto", "system"):
        return client.Client.at(Path(broker))
    if broker == "auto" and not client.SYSTEM_SOCKET.exists():
        return None
    try:
        found = client.Client.at(client.SYSTEM_SOCKET)
        found.ask(control.Status())  # whether one has any say there
    except BrokerError as problem:
        if broker == "system" or not readable(own):
            raise
        click.echo(f"safeclaw: {problem.message}; this is your own broker's journal", err=True)
        return None
    return found


def _print_all(lines: Generator[bytes, None, dict[str, Any]], as_json: bool) -> dict[str, Any]:
    while True:
        try:
            line = next(lines)
        except StopIteration as stop:
            end: dict[str, Any] = stop.value
            return end
        print_record(decode(line), as_json)
