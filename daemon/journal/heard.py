"""What journald says about the chain, as an anchor for verification.

Fields that a client sends to journald prove nothing by themselves; who sent
them does: only entries whose trusted ``_UID`` is the journal's owner count.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safeclaw.errors import JournalError


def journald_entries(directory: Path, journal_files: Path | None) -> Iterator[tuple[int, str]]:
    """Yield (sequence, leaf in hex) as journald got them from the writer, in its order.

    ``directory`` is the chain's; ``journal_files`` a directory of journal files, else
    this host's own.  Entries of every chain of that writer whose id the genesis names.

    Raises:
        JournalError: the systemd journal cannot be read.
    """
    from safeclaw.daemon.journal import reader

    # By name: type checkers take the repository's own systemd/ for the package.
    systemd_journal: Any = importlib.import_module("systemd.journal")
    try:
        uid = directory.stat().st_uid
        genesis = next(reader.read(directory))
    except (OSError, StopIteration, JournalError):
        return  # the verification itself says what is wrong
    try:
        source = systemd_journal.Reader(path=str(journal_files) if journal_files else None)
    except OSError as error:
        raise JournalError.of(error, "the systemd journal") from error
    with source:
        source.add_match(SAFECLAW_CHAIN_ID=genesis.chain)
        source.add_match(_UID=str(uid))
        entry: dict[str, object]
        for entry in source:
            seq, leaf = str(entry.get("SAFECLAW_SEQ")), str(entry.get("SAFECLAW_ENTRY_HASH"))
            if seq.isascii() and seq.isdigit():
                yield int(seq), leaf
