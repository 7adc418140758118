"""What the verbs that talk to a broker share: finding it, asking it, showing what it says."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

import click
import msgspec

from safeclaw.daemon import client, control
from safeclaw.daemon.cli.options import broker_choice
from safeclaw.policies.model import printable

Command = TypeVar("Command", bound=Callable[..., Any])
#: More than any length of time has.
_DIGITS_MAX = 15
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}


def common(command: Command) -> Command:
    """Add ``--broker`` and ``--json``."""

    def check(_ctx: click.Context, _param: click.Parameter, value: str) -> str:
        return broker_choice(value)

    which = click.option(
        "--broker",
        default="auto",
        metavar="auto|system|embedded|SOCKET",
        callback=check,
        help="Which broker; auto: the system's, else your own.",
    )
    as_json = click.option("--json", "as_json", is_flag=True, help="One JSON value.")
    return which(as_json(command))


@contextlib.contextmanager
def connected(broker: str) -> Generator[client.Client]:
    """Connect to a broker for the length of a block.  BrokerError."""
    state = client.state_directory(dict(os.environ))
    found = client.Client.choose(broker, state)
    try:
        yield found
    finally:
        found.finish()


def ask(broker: str, request: control.Request, timeout: float = client.ANSWER) -> Any:
    """Return what a broker answers to one request.  BrokerError."""
    with connected(broker) as found:
        return found.ask(request, timeout)


def echo_json(value: object) -> None:
    """Print one JSON value."""
    click.echo(msgspec.json.format(msgspec.json.encode(value), indent=2).decode())


def tell(found: object, line: str, as_json: bool) -> int:
    """Print what a broker has answered, or the line that says so to a person; return 0."""
    if as_json:
        echo_json(found)
    else:
        click.echo(line)
    return 0


def table(headings: tuple[str, ...], rows: list[tuple[object, ...]]) -> None:
    """Print rows under headings, in columns as wide as they have to be; escaped."""
    cells = [[printable(str(cell)) for cell in row] for row in (headings, *rows)]
    widths = [max(len(row[at]) for row in cells) for at in range(len(headings))]
    for row in cells:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        click.echo(line.rstrip())


def day(seconds: int | None) -> str:
    """Return a moment as a date, in UTC."""
    return "" if not seconds else time.strftime("%Y-%m-%d", time.gmtime(seconds))


def span(seconds: float) -> str:
    """Return a length of time for a person: its two largest units."""
    left = int(seconds)
    parts = [
        (left // 86400, "d"),
        (left // 3600 % 24, "h"),
        (left // 60 % 60, "m"),
        (left % 60, "s"),
    ]
    while len(parts) > 1 and parts[0][0] == 0:
        parts.pop(0)
    return " ".join(f"{number}{unit}" for number, unit in parts[:2])


class Duration(click.ParamType[int]):
    """A length of time: 90s, 30m, 12h, 90d, 2w; seconds without a letter."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """Return seconds."""
        if isinstance(value, int):
            return value
        text = str(value).strip()
        unit = _SECONDS.get(text[-1:].lower())
        number = text if unit is None else text[:-1]
        if not number.isascii() or not number.isdigit() or len(number) > _DIGITS_MAX:
            self.fail(f"{printable(text)}: a time is written 90s, 30m, 12h, 90d or 2w", param, ctx)
        return int(number) * (unit or 1)


DURATION = Duration()
