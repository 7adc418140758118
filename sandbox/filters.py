"""The seccomp programs of a session as a value: what ``syscalls`` makes, made when needed.

Importing libseccomp and having it write the programs takes longer than putting up
the walls; they are the same for every session on one kernel.
"""

from __future__ import annotations

import msgspec

from safeclaw.errors import WallError

#: Asked about where no PID namespace ends a session.
FORK_CALLS = ("fork", "vfork", "clone")
#: Asked about for internet datagrams where the network namespace is the host's.
SOCKET_CALLS = ("socket",)
#: Where the PID namespace is the host's, asked about unless they are about the caller, or a group
#: of its own (0): the call, and the argument that says whom it is about.
PROCESS_CALLS = {
    "prlimit64": 0,
    "sched_setaffinity": 0,
    "sched_setparam": 0,
    "sched_setscheduler": 0,
    "sched_setattr": 0,
    "setpriority": 1,
    "ioprio_set": 1,
    "setpgid": 1,
}


class Filters(msgspec.Struct, frozen=True):
    """Two BPF programs, and the number of each call that the second one asks about."""

    refusals: bytes
    allow_list: bytes
    numbers: dict[int, str]


def build(*, network: bool, confined: bool = False) -> Filters:
    """Return the programs.

    ``network`` says that the agent may hold host sockets, ``confined`` that it shares the
    host's namespaces, the network's among them.  Raises WallError without libseccomp.
    """
    try:
        from safeclaw.sandbox import syscalls
    except RuntimeError as problem:  # pyseccomp's; it looks for the library with other programs
        raise WallError(
            f"the seccomp filter cannot be made: {str(problem).lower()}",
            hint="apt-get install libseccomp2; if it is there, ulimit -u may be too low",
        ) from problem

    return Filters(
        syscalls.refusals(network=network or confined),
        syscalls.allow_list(confined=confined),
        syscalls.notified_numbers(confined=confined),
    )
