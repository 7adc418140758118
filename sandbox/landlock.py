"""The floor: a Landlock domain in which the agent has almost no right of its own.

Every open is done by the supervisor and handed over, so the domain grants only
EXECUTE with READ_FILE below the places programs may be run from.  No TCP bind
or connect, no abstract Unix sockets, no signals to processes outside.  Source:
landlock(7) and linux/landlock.h.
"""

from __future__ import annotations

import os

from safeclaw.errors import WallError
from safeclaw.sandbox import linux

ACCESS_FS_EXECUTE = 1 << 0
ACCESS_FS_READ_FILE = 1 << 2
#: All fifteen rights of ABI 5 and later, up to IOCTL_DEV, plus TRUNCATE and REFER.
ACCESS_FS_ALL = (1 << 16) - 1
ACCESS_NET_BIND_TCP = 1 << 0
ACCESS_NET_CONNECT_TCP = 1 << 1
SCOPE_ABSTRACT_UNIX_SOCKET = 1 << 0
SCOPE_SIGNAL = 1 << 1
_SCOPES = SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL

#: The scopes came with ABI 6 (Linux 6.12).
REQUIRED_ABI = 6
#: What a kernel's floor lacks below each ABI (landlock(7)), by name, and its bits: file rights,
#: TCP rights, scopes.
_SINCE = (
    (2, "refer", 1 << 13, 0, 0),
    (3, "truncate", 1 << 14, 0, 0),
    (4, "tcp", 0, ACCESS_NET_BIND_TCP | ACCESS_NET_CONNECT_TCP, 0),
    (5, "ioctl-dev", 1 << 15, 0, 0),
    (6, "scope-signal", 0, 0, SCOPE_SIGNAL),
    (6, "scope-abstract-unix-socket", 0, 0, SCOPE_ABSTRACT_UNIX_SOCKET),
)


def require(*, older: bool = False) -> int:
    """Return the kernel's ABI; WallError when it is too old for the floor.

    ``older``: less than the whole floor will do, as long as there is one.
    """
    abi = linux.landlock_abi()
    if abi < (1 if older else REQUIRED_ABI):
        raise WallError(
            f"Landlock ABI {REQUIRED_ABI} is needed, this kernel has {abi or 'none'}",
            hint="boot Linux 6.12 or later with lsm=landlock in its list"
            + ("; --allow-degraded landlock-abi does without what is newer" if abi else ""),
        )
    return abi


def lacking(abi: int) -> tuple[str, ...]:
    """Return what the floor of an older kernel lacks, by name."""
    return tuple(name for since, name, *_ in _SINCE if abi < since)


def has_scopes() -> bool:
    """Whether this kernel keeps signals inside the domain."""
    return linux.landlock_abi() >= REQUIRED_ABI


def build(executable_roots: tuple[str, ...]) -> int:
    """Return a ruleset descriptor; paths are those of the agent's view."""
    abi = linux.landlock_abi()
    files, tcp, scopes = ACCESS_FS_ALL, ACCESS_NET_BIND_TCP | ACCESS_NET_CONNECT_TCP, _SCOPES
    for since, _, *without in _SINCE:
        if abi < since:
            files, tcp, scopes = files & ~without[0], tcp & ~without[1], scopes & ~without[2]
    ruleset = linux.landlock_create_ruleset(linux.RulesetAttr(files, tcp, scopes))
    for root in executable_roots:
        try:
            fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue  # not in the view: nothing to run there
        linux.landlock_add_path(ruleset, fd, ACCESS_FS_EXECUTE | ACCESS_FS_READ_FILE)
        os.close(fd)
    return ruleset
