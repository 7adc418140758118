"""The journal: a hash chain of records on disk, its checkpoints, its readers.

``journal`` writes (one process at a time) with ``tip`` and ``upkeep``, ``reader`` reads,
``verifier`` judges, ``journald`` forwards.  ``record``, ``merkle`` and ``note`` are pure.
"""

from safeclaw.daemon.journal.journal import Journal
from safeclaw.daemon.journal.reader import read
from safeclaw.daemon.journal.record import Entry, PolicyRef, Record, RecordType, Subject

__all__ = ["Entry", "Journal", "PolicyRef", "Record", "RecordType", "Subject", "read"]
