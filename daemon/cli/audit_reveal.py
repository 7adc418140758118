"""``safeclaw audit reveal``: what stands behind pseudonyms, for who holds their key."""

from __future__ import annotations

import os
from pathlib import Path
from typing import cast

import click
import msgspec

from safeclaw.daemon import pseudonyms
from safeclaw.daemon.cli.audit import common
from safeclaw.daemon.cli.audit_keys import configured, keeping_of, present, writing
from safeclaw.daemon.journal import reader
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.journal.text import safe, target_text
from safeclaw.errors import JournalError
from safeclaw.policies.model import printable


@click.command(
    name="reveal",
    help="Print what records say behind their pseudonyms.  Needs the pseudonym key; that "
    "it was done, by whom and why, becomes a record itself, before anything is printed.",
)
@click.argument("numbers", metavar="SEQ...", nargs=-1, required=True, type=click.IntRange(min=0))
@click.option("--why", required=True, metavar="TEXT", help="The reason, which is recorded.")
@click.option("--key", "key_file", metavar="FILE", help="The key; else the state's own.")
@configured
@common
def reveal_command(
    state: Path,
    as_json: bool,
    numbers: tuple[int, ...],
    why: str,
    key_file: str | None,
    config: str | None,
) -> None:
    """Record the request, then print."""
    keeping = keeping_of(state, config)
    present(state)
    path = Path(key_file) if key_file is not None else state / "keys" / pseudonyms.KEY_FILE
    key = pseudonyms.read_key(path)
    wanted = set(numbers)
    found = [
        pseudonyms.reveal(record, key)
        for record in reader.read(state / "journal")
        if record.seq in wanted
    ]
    missing = wanted - {item.seq for item in found}
    if missing:
        raise JournalError(
            f"no record {min(missing)} in this journal", hint="safeclaw audit show lists them"
        )
    entry = Entry(
        type=RecordType.EXPORT,
        action="audit.reveal",
        uid=os.getuid(),
        pid=os.getpid(),
        reason=printable(why),
        detail={"key": key.id, "records": sorted(wanted)},
    )
    with writing(state, keeping) as journal:
        journal.append(entry)
        journal.commit()
    for item in found:
        if as_json:
            click.echo(msgspec.json.encode(item))
            continue
        for name, value in item.plain.items():
            # of the target as `audit show` has it, of the others as they are
            shown = str(value)
            if isinstance(value, dict):
                shown = target_text(cast("dict[str, object]", value))
            click.echo(f"{item.seq:>7} {name}: {safe(shown)}")
