"""``safeclaw audit keys`` and ``audit prune``: what changes a journal while nobody writes it."""

from __future__ import annotations

import contextlib
from collections.abc import Generator
from pathlib import Path

import click
import msgspec

from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.journal import files, keys, reader
from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.note import NoteError, PublicKey
from safeclaw.daemon.journal.retention import RETENTION_DAYS, check
from safeclaw.errors import JournalError


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
        raise JournalError(f"{state / 'journal' / keys.KEYRING}: {error.message}") from error
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
        raise JournalError(f"{output}: {error.strerror}") from error


@keys_group.command(help="Begin an epoch with a new key; the old private key is erased.")
@common
def roll(state: Path, as_json: bool) -> None:
    """Certify the next key in the chain."""
    present(state)
    with writing(state) as journal:
        journal.roll_key()
        journal.commit()
    newest = _public(state)[-1].text()
    click.echo(msgspec.json.encode({"public_key": newest}) if as_json else newest)


@contextlib.contextmanager
def writing(state: Path) -> Generator[Journal]:
    """Open the journal as its writer.

    Raises:
        JournalError: a broker has it, or it cannot be written.
    """
    if files.is_locked(state / "journal"):
        raise JournalError(
            f"{state / 'journal'}: a broker is writing this chain",
            hint="wait until the last session has ended (or stop safeclawd), then try again",
        )
    with Journal.open(state / "journal") as journal:
        yield journal


def present(state: Path) -> None:
    """Refuse to make a journal where there is none."""
    try:
        found = files.segments(state / "journal")
    except OSError as error:
        raise JournalError(f"{state / 'journal'}: {error.strerror}", hint="give --state") from error
    if not found:
        raise JournalError(f"{state / 'journal'}: no journal here", hint="give --state DIR")


@click.command(name="prune", help="Delete whole segments older than the retention, and record it.")
@click.option(
    "--retention", type=click.IntRange(min=0), default=RETENTION_DAYS, show_default=True,
    metavar="DAYS", help="How long records are kept.",
)  # fmt: skip
@click.option("--override", is_flag=True, help="Keep less than 90 days.")
@common
def prune_command(state: Path, as_json: bool, retention: int, override: bool) -> None:
    """Prune now; the writer does it by itself at every rotation."""
    check(retention, override=override)
    present(state)
    with writing(state) as journal:
        count = journal.prune(retention, override=override)
        journal.commit()
    value = {"segments": count}
    click.echo(msgspec.json.encode(value) if as_json else f"{count} segments pruned")
