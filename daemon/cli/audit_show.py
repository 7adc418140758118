"""``safeclaw audit show``: the records, from the journal's files or by way of the broker."""

from __future__ import annotations

import os
from collections.abc import Generator
from pathlib import Path
from typing import Any

import click

from safeclaw.daemon import client, control
from safeclaw.daemon.cli.audit import SYSTEM_STATE, common, filters, print_record
from safeclaw.daemon.cli.options import broker_choice
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.record import decode
from safeclaw.errors import UsageError


def _broker(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
    return broker_choice(value)


@click.command(
    name="show",
    help="Print the records, oldest first.\n\n"
    "Who may read the journal's files reads those. Others ask the system's broker, and are shown "
    "the records of their own sessions; --broker embedded is the journal of one's own broker.",
)
@common
@filters
@click.option("--last", type=click.IntRange(min=0), metavar="N", help="Only the newest N.")
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
    decision: str | None,
    action: str | None,
    agent: str | None,
    session: str | None,
    kind: str | None,
    last: int | None,
    broker: str,
) -> None:
    """Print the records that pass the filters."""
    given = ctx.get_parameter_source("state") is not click.core.ParameterSource.DEFAULT
    if given and broker != "auto":
        raise UsageError("--state or --broker, not both")
    if broker == "embedded":
        state = client.state_directory(dict(os.environ))
    socket = None if given else _socket(broker, state)
    if socket is None:
        for record in reader.read(
            state / "journal",
            decision=decision,
            action=action,
            agent=agent,
            session=session,
            type=kind,
            last=last,
        ):
            print_record(record, as_json)
        return
    if last is not None and last > control.LAST_MAX:
        raise UsageError(f"--last {last}: a broker is asked for {control.LAST_MAX} at most")
    end = _through(socket, control.Records(session, agent, action, decision, kind, last), as_json)
    if end["own"]:
        click.echo("safeclaw: these are the records of your own sessions", err=True)


def _socket(broker: str, state: Path) -> Path | None:
    """Return the socket of the broker to ask; None where files are read."""
    if broker == "embedded" or (broker == "auto" and state == SYSTEM_STATE):
        return None
    if broker == "auto":
        return client.SYSTEM_SOCKET if client.SYSTEM_SOCKET.exists() else None
    return client.SYSTEM_SOCKET if broker == "system" else Path(broker)


def _through(socket: Path, request: control.Records, as_json: bool) -> dict[str, Any]:
    found = client.Client.at(socket)
    try:
        return _print_all(found.records(request), as_json)
    finally:
        found.channel.close()


def _print_all(lines: Generator[bytes, None, dict[str, Any]], as_json: bool) -> dict[str, Any]:
    while True:
        try:
            line = next(lines)
        except StopIteration as stop:
            end: dict[str, Any] = stop.value
            return end
        print_record(decode(line), as_json)
