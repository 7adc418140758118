"""``safeclaw audit keys`` and ``audit prune``: what changes a journal while nobody writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, TypeVar

import click
import msgspec

from safeclaw.daemon import settings
from safeclaw.daemon.cli.audit import SYSTEM_STATE, common
from safeclaw.daemon.journal import files, keys, reader
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.note import NoteError, PublicKey
from safeclaw.daemon.journal.retention import check
from safeclaw.errors import JournalError

Command = TypeVar("Command", bound=Callable[..., Any])


def configured(command: Command) -> Command:
    """Add ``--config``."""
    return click.option(
        "--config", metavar="DIR",
        help="Where safeclawd.yaml is; else where the broker of that state looks for it.",
    )(command)  # fmt: skip


def keeping_of(state: Path, config: str | None) -> Keeping:
    """Return how the broker of a state directory keeps its journal.  UsageError."""
    if config is not None:
        place = Path(config)
    elif state.resolve() == SYSTEM_STATE.resolve():
        place = settings.SYSTEM_PLACE
    else:
        place = settings.own_place()
    return settings.read(place / settings.FILE_NAME).journal


@click.group(name="keys", help="Show, hand out and change the keys that sign checkpoints.")
def keys_group() -> None:
    """Hold the subcommands."""


def _public(state: Path) -> list[PublicKey]:
    """Return the public keys, from the chain itself for who may read no more than that."""
    try:
        return keys.read_public_keys(state / "keys" / files.PUBLIC_KEY)
    except JournalError:
        ring = keys.read_keyring(state / "journal")
        if ring is not None:
            return ring.keys()
        first = next(reader.read(state / "journal"), None)
        detail = (first.detail if first is not None else None) or {}
        if "public_key" not in detail:
            raise
        return [PublicKey.parse(str(detail["public_key"]))]


@keys_group.command(help="Print every public key so far, and where its epoch begins.")
@common
def show(state: Path, as_json: bool) -> None:
    """Print the epochs, oldest first."""
    ring = keys.read_keyring(state / "journal")
    sizes = [0]
    known = _public(state)
    try:
        if ring is not None:
            known = ring.keys()
            sizes += [
                keys.open_certificate(note, old).checkpoint.size
                for note, old in zip(ring.certificates, known, strict=False)
            ]
    except NoteError as error:
        raise JournalError(
            f"{state / 'journal' / keys.KEYRING}: {error.message}",
            hint="run: safeclaw audit verify; a backup of the state has it whole",
        ) from error
    for epoch, (key, size) in enumerate(zip(known, sizes, strict=True), 1):
        if as_json:
            value = {"epoch": epoch, "from_seq": size, "public_key": key.text()}
            click.echo(msgspec.json.encode(value))
        else:
            click.echo(f"{epoch:>3}  from record {size:<9} {key.text()}")


@keys_group.command(help="Print the public keys, to be kept where this host cannot reach.")
@click.option("--output", metavar="FILE", help="Write them there; else to standard output.")
@common
def export(state: Path, as_json: bool, output: str | None) -> None:
    """Print what ``verify --public-key`` takes."""
    found = [key.text() for key in _public(state)]
    text = msgspec.json.encode(found).decode() + "\n" if as_json else "\n".join([*found, ""])
    if output is None:
        click.echo(text, nl=False)
        return
    try:
        Path(output).write_text(text)
    except OSError as error:
        raise JournalError.of(error, output) from error


@keys_group.command(help="Begin an epoch with a new key; the old private key is erased.")
@configured
@common
def roll(state: Path, as_json: bool, config: str | None) -> None:
    """Certify the next key in the chain."""
    keeping = keeping_of(state, config)
    present(state)
    with writing(state, keeping) as journal:
        journal.roll_key()
        journal.commit()
    newest = _public(state)[-1].text()
    click.echo(msgspec.json.encode({"public_key": newest}) if as_json else newest)


@contextlib.contextmanager
def writing(state: Path, keeping: Keeping) -> Generator[Journal]:
    """Open the journal as its writer, who keeps it as the broker would.

    Raises:
        JournalError: a broker has it, or it cannot be written.
    """
    if files.is_locked(state / "journal"):
        raise JournalError(
            f"{state / 'journal'}: a broker is writing this chain",
            hint="wait until the last session has ended (or stop safeclawd), then try again",
        )
    with Journal.open(state / "journal", keeping=keeping) as journal:
        yield journal


def present(state: Path) -> None:
    """Refuse to make a journal where there is none."""
    try:
        found = files.segments(state / "journal")
    except OSError as error:
        raise JournalError(f"{state / 'journal'}: {error.strerror}", hint="give --state") from error
    if not found:
        raise JournalError(f"{state / 'journal'}: no journal here", hint="give --state DIR")


@click.command(
    name="prune",
    help="Delete whole segments older than the retention, and record it.\n\nA broker that runs "
    "does this by itself, whenever a segment is full or a day old.",
)
@click.option(
    "--retention", type=click.IntRange(0, 36_500), metavar="DAYS",
    help="How long records are kept; else journal.retention_days of safeclawd.yaml, or 100.",
)  # fmt: skip
@click.option(
    "--override", is_flag=True,
    help="Keep less than 90 days, or less than is configured; that is recorded.",
)  # fmt: skip
@configured
@common
def prune_command(
    state: Path, as_json: bool, retention: int | None, override: bool, config: str | None
) -> None:
    """Prune now."""
    keeping = keeping_of(state, config)
    days = keeping.retention_days if retention is None else retention
    check(days, override=override)
    if days < keeping.retention_days and not override:
        raise JournalError(
            f"a retention of {days} days is under the {keeping.retention_days} that are configured",
            hint="without --retention it is what is configured; --override prunes all the same, "
            "and is recorded",
        )
    present(state)
    with writing(state, keeping) as journal:
        count = journal.prune(days, override=override)
        journal.commit()
    value = {"segments": count, "retention_days": days}
    text = f"{count} segments pruned: what was older than {days} days"
    click.echo(msgspec.json.encode(value) if as_json else text)
