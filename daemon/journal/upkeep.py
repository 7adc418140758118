"""The records that a journal writes about itself: genesis, checkpoint, rotate, key_change, prune.

It belongs to one :class:`~safeclaw.daemon.journal.journal.Journal`, lives as long, and is
used under its append lock.  It appends to the tip and signs; whatever else is to be done on the
disk waits in ``mark`` and ``afterwards`` until the commit has made those records durable.
"""

from __future__ import annotations

import base64
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final

from safeclaw.daemon.journal import files, keys, retention
from safeclaw.daemon.journal.keeping import Keeping
from safeclaw.daemon.journal.note import Checkpoint, SigningKey
from safeclaw.daemon.journal.record import Entry, RecordType
from safeclaw.daemon.journal.recovery import FrontierFile
from safeclaw.daemon.journal.store import Mark
from safeclaw.daemon.journal.tip import Tip
from safeclaw.errors import JournalError, JournalFaultError

CHECKPOINT_RECORDS: Final = 1024
SEGMENT_NS: Final = 86_400 * 1_000_000_000


def origin(chain: str) -> str:
    """Return the checkpoint origin (and key name) of a chain."""
    return f"safeclaw/{chain}"


class Upkeep:
    """See the module.  ``keys`` is the directory of the signing key."""

    def __init__(self, directory: Path, keys: Path, tip: Tip, keeping: Keeping) -> None:
        self._directory = directory
        self._keys = keys
        self._tip = tip
        self._key: SigningKey | None = None
        self._segment_ns = tip.appended_ns
        self._rolling: str | None = None  # a certificate that is not on disk yet
        self._pruning = False  # whether segments go, or are to go, behind a prune record
        #: When the latest checkpoint was appended, on the monotonic clock.
        self.checkpoint_ns = tip.appended_ns
        #: The checkpoint that the next commit is to put beside the chain.
        self.mark: Mark | None = None
        #: What may be done only once all that was appended before it is on disk.
        self.afterwards: list[Callable[[], None]] = []
        self.segment_bytes = keeping.segment_kib << 10
        self.retention_days = keeping.retention_days
        self.key_seconds = keeping.key_days * 86_400

    @property
    def due(self) -> bool:
        """Whether so much was appended that :meth:`round_off` is needed."""
        head = self._tip.head
        return head.unsigned >= CHECKPOINT_RECORDS or head.offset >= self.segment_bytes

    def round_off(self) -> None:
        """Sign and begin a new segment when enough was appended, or the segment is a day old."""
        tip = self._tip
        if tip.head.unsigned >= CHECKPOINT_RECORDS:
            self.checkpoint()
        if tip.head.offset >= self.segment_bytes or (
            tip.appended_ns - self._segment_ns >= SEGMENT_NS
        ):
            self._rotate()

    def begin_chain(self, chain: str) -> None:
        """Make the first key and the first record, with a checkpoint over it."""
        self._tip.head.chain = chain
        self._key = files.new_key(self._keys, origin(chain))
        detail: dict[str, object] = {
            "origin": origin(chain),
            "public_key": self._key.public.text(),
        }
        self._tip.watch_clock()
        self._tip.append(Entry(type=RecordType.GENESIS, detail=detail))
        # From the first moment on, a missing first segment is missed.
        self._publish()

    def resume_segment(self, age_ns: int) -> None:
        """Take the segment up as the last writer left it, begun ``age_ns`` ago."""
        self._segment_ns = self._tip.appended_ns - age_ns

    def open_segment(self) -> None:
        """Append the record that every later segment opens with."""
        head = self._tip.head
        detail: dict[str, object] = {
            "continues": files.segment_name(head.segment - 1),
            "key": self._signing_key().public.text(),
            "nodes": " ".join(node.hex() for node in head.frontier.nodes),
            "root": base64.b64encode(head.frontier.root()).decode(),
            "size": head.seq,
        }
        self._tip.append(Entry(type=RecordType.ROTATE, detail=detail))

    def checkpoint(self) -> None:
        """Sign all that was appended."""
        self._signing_key()
        # Here, since loading a key takes a while; and before the size is signed.
        self._tip.watch_clock()
        checkpoint, note = self._sign()
        detail: dict[str, object] = {
            "note": note,
            "root": base64.b64encode(checkpoint.root).decode(),
            "size": checkpoint.size,
        }
        self._tip.append(Entry(type=RecordType.CHECKPOINT, detail=detail))
        # The published one covers the checkpoint record itself too.
        self._publish()
        self._tip.head.unsigned = 0
        self.checkpoint_ns = time.monotonic_ns()

    def roll_key(self) -> str:
        """Begin an epoch with a new key; return its certificate.

        Raises:
            JournalFaultError: the next key could not be stored; nothing was appended.
        """
        if self._rolling is not None:
            # INVARIANT: one staged key at a time; a second would overwrite the first's.
            return self._rolling
        try:
            new = keys.stage(self._keys, origin(self._tip.head.chain))
        except OSError as error:
            raise JournalFaultError.of(error, self._keys) from error
        self._tip.watch_clock()
        checkpoint, _ = self._sign()
        certificate = keys.certify(self._signing_key(), new, checkpoint)
        detail: dict[str, object] = {
            "certificate": certificate,
            "public_key": new.public.text(),
            "root": base64.b64encode(checkpoint.root).decode(),
            "size": checkpoint.size,
        }
        self._tip.append(Entry(type=RecordType.KEY_CHANGE, detail=detail))
        self._key = new
        self.checkpoint()
        self._rolling = certificate
        self.afterwards.append(self._install)
        return certificate

    def prune(self, days: int, *, override: bool = False) -> int:
        """Record that the segments older than ``days`` go; return how many.

        None, while those of the last such record have not all gone.

        Raises:
            JournalError: under 90 days without ``override``.
        """
        if self._pruning:
            # INVARIANT: one plan at a time.  The commit deletes beside this; a second plan, made
            # of what is left halfway, would say that less had gone than the first one did.
            return 0
        plan = retention.plan(self._directory, time.time_ns() / 1e9, days, override=override)
        if plan is None:
            return 0
        self._tip.watch_clock()
        self._tip.append(Entry(type=RecordType.PRUNE, detail=plan.detail))
        self.checkpoint()

        def carry_out() -> None:
            plan.carry_out()
            self._pruning = False

        self._pruning = True
        self.afterwards.append(carry_out)
        return len(plan.paths)

    def _rotate(self) -> None:
        # INVARIANT: a segment that is begun is opened, too; without the key neither is.
        self._signing_key()
        self._tip.begin_segment()
        self._segment_ns = self._tip.appended_ns
        self.open_segment()
        self.checkpoint()
        # Neither is worth a fault: the next segment tries again.
        with contextlib.suppress(OSError, JournalError):
            if retention.key_age_s(self._keys, time.time_ns() / 1e9) > self.key_seconds:
                self.roll_key()
            self.prune(self.retention_days)

    def _signing_key(self) -> SigningKey:
        if self._key is None:
            self._key = files.load_key(self._keys)
        return self._key

    def _sign(self) -> tuple[Checkpoint, str]:
        head = self._tip.head
        checkpoint = Checkpoint(origin(head.chain), head.seq, head.frontier.root())
        return checkpoint, self._signing_key().sign(checkpoint.text())

    def _publish(self) -> None:
        """Have the next commit put a note over all that was appended beside the chain."""
        _, note = self._sign()
        head = self._tip.head
        nodes = [node.hex() for node in head.frontier.nodes]
        cache = FrontierFile(
            head.chain, head.seq, head.segment, head.offset, head.prev, nodes,
            list(head.unfinished.values()),
        )  # fmt: skip
        self.mark = Mark(head.seq, note, cache)

    def _install(self) -> None:
        if self._rolling is not None:
            keys.install(self._directory, self._keys, self._rolling)
            self._rolling = None
