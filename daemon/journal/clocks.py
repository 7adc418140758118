"""What the clocks in a chain may do from one record to the next.

Within one boot the wall clock keeps step with the boot clock, unless a ``clock_step`` says
otherwise, and the boot clock never goes back.
"""

from __future__ import annotations

import re
from datetime import datetime
from typing import Final

from safeclaw.daemon.journal.record import Record, RecordType

#: Twice what the writer takes for a step, and what slewing may add.
STEP_US: Final = 2_000_000

_EPOCH = datetime(1970, 1, 1)
# strptime takes a small t, and other scripts' digits, too
_SECOND = re.compile("[0-9]{4}-[0-9]{2}-[0-9]{2}T[0-9]{2}:[0-9]{2}:[0-9]{2}").fullmatch
_MICRO = re.compile(r"\.[0-9]{6}Z").fullmatch
_MICROSECOND = datetime.resolution


class ClockError(Exception):
    """A record's time cannot be, after those before it; the text says why."""


class Clocks:
    """The clocks as the last record had them."""

    __slots__ = ("_offset", "_second", "_second_us", "_wall_us", "boot", "boottime")

    def __init__(self) -> None:
        self.boot = ""
        self.boottime = 0
        self._offset = 0
        self._wall_us = 0
        # The second parsed last: most records are of the same one.
        self._second: str = ""
        self._second_us = 0

    @property
    def state(self) -> tuple[str, int, int]:
        """All that the next record is held against: boot id, boot clock, wall clock."""
        return self.boot, self.boottime, self._wall_us

    def resume(self, state: tuple[str, int, int]) -> None:
        """Go on from where others had got."""
        self.boot, self.boottime, self._wall_us = state
        self._offset = self._wall_us - self.boottime

    def follow(self, record: Record) -> str:
        """Take the next record; return what is to be said about it, mostly nothing.

        Raises:
            ClockError: its time cannot be.
        """
        second, micro = record.ts[:19], record.ts[19:]
        if second != self._second:
            if not _SECOND(second):
                raise ClockError("ts is not a time")
            try:
                wall = datetime.strptime(second, "%Y-%m-%dT%H:%M:%S")
            except ValueError as error:
                raise ClockError("ts is not a time") from error
            self._second = second
            self._second_us = (wall - _EPOCH) // _MICROSECOND
        if not _MICRO(micro):
            raise ClockError("ts is not a time")
        wall_us = self._second_us + int(micro[1:7])
        offset = wall_us - record.boottime_us
        note = ""
        if record.boot_id != self.boot:
            if self.boot and wall_us < self._wall_us - STEP_US:
                note = (
                    f"record {record.seq}, the first after a reboot, is dated "
                    f"{(self._wall_us - wall_us) // 1_000_000} s before the one before it"
                )
        elif record.type is not RecordType.CLOCK_STEP:
            elapsed = record.boottime_us - self.boottime
            if elapsed < 0:
                raise ClockError("the boot clock goes back")
            if abs(offset - self._offset) > STEP_US + elapsed // 500:
                raise ClockError("ts does not keep step with the boot clock")
        self.boot, self.boottime = record.boot_id, record.boottime_us
        self._offset, self._wall_us = offset, wall_us
        return note
