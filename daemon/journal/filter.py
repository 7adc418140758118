"""Which records are meant, by what they say.  Pure."""

from __future__ import annotations

import msgspec

from safeclaw.daemon.journal.record import Record


class Filter(msgspec.Struct, frozen=True):
    """What records have to have; None leaves none out.  An action covers everything below it.

    ``since`` and, not included, ``until`` are times as records write them.
    """

    agent: str | None = None
    decision: str | None = None
    action: str | None = None
    session: str | None = None
    type: str | None = None
    since: str | None = None
    until: str | None = None

    def passes(self, record: Record) -> bool:
        """Whether a record is meant."""
        action = record.action or ""
        return (
            (self.decision is None or record.decision == self.decision)
            and (self.agent is None or record.agent == self.agent)
            and (self.session is None or record.session == self.session)
            and (self.type is None or record.type == self.type)
            and (self.since is None or record.ts >= self.since)
            and (self.until is None or record.ts < self.until)
            and (
                self.action is None or action == self.action or action.startswith(self.action + ".")
            )
        )

    def fields(self) -> dict[str, str]:
        """Return what is not None, by name."""
        values = {name: getattr(self, name) for name in self.__struct_fields__}
        return {name: value for name, value in values.items() if value is not None}


EVERY = Filter()
