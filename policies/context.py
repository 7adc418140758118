"""What a policy has to know about the session that it is for (``source.context`` collects it)."""

from __future__ import annotations

import msgspec


class Program(msgspec.Struct, frozen=True):
    """Where a bare name of the policy is found, the canonical path, and the links on the way."""

    name: str
    found: str
    canonical: str
    links: tuple[str, ...] = ()


class Context(msgspec.Struct, frozen=True):
    """What a policy has to know about the session.  All paths are canonical.

    ``protected`` prefixes are out of reach; ``read_only`` ones (the policy files
    in force, and the links by which refusing rules name something) may be read where a rule
    allows it, but never changed.
    ``interpreter`` are prefixes that the runtime may read.  ``programs`` says
    where bare names lead; ``addresses`` what host names resolve to; ``leads``
    where the literal beginnings of refusing rules lead that have a link on the way;
    ``caseless`` are places where names are without regard to case, so that no rule can hold.
    """

    workspace: str
    home: str
    protected: tuple[str, ...] = ()
    read_only: tuple[str, ...] = ()
    interpreter: tuple[str, ...] = ()
    programs: tuple[Program, ...] = ()
    addresses: tuple[tuple[str, tuple[str, ...]], ...] = ()
    leads: tuple[tuple[str, str], ...] = ()
    caseless: tuple[str, ...] = ()
