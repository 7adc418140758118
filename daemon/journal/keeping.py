"""How a journal is kept over the months; an operator may set it otherwise."""

from __future__ import annotations

from typing import Annotated, Final

import msgspec

from safeclaw.daemon.journal.retention import RETENTION_DAYS, RETENTION_LEAST

SEGMENT_BYTES: Final = 64 << 20
KEY_DAYS: Final = 7


class Keeping(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """When a segment ends, how long one stays, and how long a key signs."""

    #: A segment ends at this size, in KiB, and after a day.
    segment_kib: Annotated[int, msgspec.Meta(ge=16, le=1 << 20)] = SEGMENT_BYTES >> 10
    #: How old a segment gets before it is pruned.
    retention_days: Annotated[int, msgspec.Meta(ge=RETENTION_LEAST, le=36_500)] = RETENTION_DAYS
    #: A signing key that served so long is rolled when the next segment begins.
    key_days: Annotated[int, msgspec.Meta(ge=1, le=3650)] = KEY_DAYS
