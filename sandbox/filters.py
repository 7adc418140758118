"""The seccomp programs of a session as a value: what ``syscalls`` makes, made when needed.

Importing libseccomp and having it write the programs takes longer than putting up
the walls; they are the same for every session on one kernel.
"""

from __future__ import annotations

import msgspec


class Filters(msgspec.Struct, frozen=True):
    """Two BPF programs, and the number of each call that the second one asks about."""

    refusals: bytes
    allow_list: bytes
    numbers: dict[int, str]


def build(*, network: bool) -> Filters:
    """Return the programs; ``network`` says that the agent may hold host sockets."""
    from safeclaw.sandbox import syscalls

    return Filters(
        syscalls.refusals(network=network), syscalls.allow_list(), syscalls.notified_numbers()
    )
