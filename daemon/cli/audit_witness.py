"""``safeclaw audit witness``: run a witness, and have a chain's checkpoints cosigned by one."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from pathlib import Path
from types import FrameType
from typing import Final

import click
import msgspec

from safeclaw.daemon import places
from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.cli.unwinding import unwinding
from safeclaw.daemon.journal import keys
from safeclaw.daemon.journal.text import safe
from safeclaw.errors import JournalError, UsageError

SYSTEM_DIRECTORY: Final = Path("/var/lib/safeclaw-witness")


@click.group(
    name="witness",
    short_help="Run a witness, or have this chain cosigned by one.",
    help="Run a witness for other hosts' chains, or have this chain's checkpoints cosigned.\n\n"
    "A witness keeps the last checkpoint of each chain and cosigns only what continues it "
    "(c2sp.org/tlog-witness). Run it where whoever could rewrite the chain has no say.",
)
def witness_group() -> None:
    """Hold the subcommands."""


def _directory(_ctx: click.Context, _param: click.Parameter, value: str | None) -> Path:
    if value is not None:
        return Path(value)
    if os.geteuid() == 0 or os.access(SYSTEM_DIRECTORY, os.R_OK | os.X_OK):
        return SYSTEM_DIRECTORY
    return places.state() / "safeclaw-witness"


_place = click.option(
    "--directory", metavar="DIR", callback=_directory, help="The witness's own; else the default."
)


@witness_group.command(help="Make a witness with a key of its own, and print its public key.")
@click.option("--name", required=True, metavar="NAME", help="Such as witness.example.com/w1.")
@_place
def init(directory: Path, name: str) -> None:
    """Make the key."""
    from safeclaw.daemon.witness.store import Store

    click.echo(Store.make(directory, name).cosigner.public.text())


@witness_group.command(help="Take up a chain, by the file that `audit keys export` wrote.")
@click.argument("file", metavar="PUBLIC-KEYS")
@_place
def add(directory: Path, file: str) -> None:
    """Take up a log."""
    from safeclaw.daemon.witness.store import Store

    try:
        given = keys.read_public_keys(Path(file))
    except JournalError as error:
        raise UsageError(error.message, hint=error.hint) from error
    seen = Store(directory).add_log(given)
    click.echo(f"{safe(seen.origin)}: {len(seen.keys)} keys, {seen.size} records seen")


@witness_group.command(help="Print the witness's public key, and what it has seen.")
@click.option("--json", "as_json", is_flag=True, help="One JSON value a line.")
@_place
def show(directory: Path, as_json: bool) -> None:
    """Print what the store holds."""
    from safeclaw.daemon.witness.store import Store

    store = Store(directory)
    logs = store.logs()
    if as_json:
        click.echo(msgspec.json.encode({"public_key": store.cosigner.public.text()}))
        for seen in logs:
            click.echo(msgspec.json.encode(seen))
        return
    click.echo(store.cosigner.public.text())
    for seen in logs:
        when = _time(seen.cosigned_at) if seen.note else "never"
        click.echo(f"  {safe(seen.origin)}: {seen.size} records, cosigned {when}")


@witness_group.command(help="Serve until it is stopped (SIGTERM).")
@click.option(
    "--listen", default="127.0.0.1:7480", show_default=True, metavar="HOST:PORT",
    help="Where; for TLS, put a reverse proxy in front.",
)  # fmt: skip
@_place
def serve(directory: Path, listen: str) -> None:
    """Serve HTTP."""
    from safeclaw.daemon.witness.server import Server
    from safeclaw.daemon.witness.store import Store

    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise UsageError(f"--listen {listen}: not HOST:PORT", hint="such as 0.0.0.0:7480")
    store = Store(directory)
    try:
        server = Server((host.strip("[]"), int(port)), store)
    except OSError as error:
        raise JournalError.of(error, f"cannot listen on {listen}") from error

    # Shutting down waits for the loop, which the main thread is in.
    def shut_down(_number: int, _frame: FrameType | None) -> None:
        threading.Thread(target=server.shutdown).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, shut_down)
    bound = f"{host}:{server.server_port}"
    click.echo(f"{store.cosigner.public.text()} on http://{bound}", err=True)
    with server:
        server.serve_forever()


@witness_group.command(
    help="Have the latest checkpoint cosigned by the witness at URL.\n\nNeeds no more than to "
    "read the journal. With --every it goes on until it is stopped, and tries again after a "
    "failure; without, the exit status is 3 when the witness does not cosign."
)
@click.argument("url", metavar="URL")
@click.option("--witness-key", metavar="KEY", help="The witness's public key, or a file with it.")
@click.option("--every", type=click.IntRange(1, 86_400), metavar="SECONDS",
              help="Again and again.")  # fmt: skip
@click.option("--output", metavar="FILE", help="Keep the cosigned checkpoint there.")
@common
def push(
    state: Path, as_json: bool, url: str, witness_key: str | None, every: int | None,
    output: str | None,
) -> None:  # fmt: skip
    """Push once, or on and on."""
    from safeclaw.daemon.witness.push import Feed, read_witness_keys

    key = None
    if witness_key is not None:
        try:
            (key,) = read_witness_keys(witness_key)
        except JournalError as error:
            raise UsageError(error.message, hint=error.hint) from error
        except ValueError:
            raise UsageError(
                f"{witness_key}: the keys of more than one witness",
                hint="a push goes to one: give its key alone",
            ) from None
    feed = Feed(state / "journal", url, key)
    stop = threading.Event()

    def enough(_number: int, _frame: FrameType | None) -> None:
        stop.set()

    if every is not None:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, enough)
    last = -1
    while not stop.is_set():
        try:
            pushed = feed.push()
        except JournalError as error:
            if every is None:
                raise
            print("\n".join(error.diagnostics()), file=sys.stderr, flush=True)
        else:
            if output is not None:
                _keep(Path(output), pushed.note)
            if pushed.size != last:
                _say(url, pushed.size, pushed.at, as_json)
            last = pushed.size
        if every is None:
            return
        stop.wait(every)


def _say(url: str, size: int, at: int | None, as_json: bool) -> None:
    if as_json:
        value = {"url": url, "size": size, "cosigned_at": at}
        click.echo(msgspec.json.encode(value))
    else:
        when = _time(at) if at is not None else "(without --witness-key, nobody checked by whom)"
        click.echo(f"{size} records cosigned {when}")
    sys.stdout.flush()


def _keep(path: Path, note: str) -> None:
    from safeclaw.daemon.evidence.whole import whole

    with unwinding(), whole(path) as partial:
        partial.write_text(note, "utf-8")


def _time(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(min(seconds, 2**40)))
