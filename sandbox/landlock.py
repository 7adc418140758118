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

#: The scopes came with ABI 6 (Linux 6.12).
REQUIRED_ABI = 6


def require() -> int:
    """Return the kernel's ABI, or raise WallError when it is too old for the floor."""
    abi = linux.landlock_abi()
    if abi < REQUIRED_ABI:
        raise WallError(
            f"Landlock ABI {REQUIRED_ABI} is needed, this kernel has {abi or 'none'}",
            hint="boot Linux 6.12 or later with lsm=landlock in its list",
        )
    return abi


def build(executable_roots: tuple[str, ...]) -> int:
    """Return a ruleset descriptor; paths are those of the agent's view."""
    ruleset = linux.landlock_create_ruleset(
        linux.RulesetAttr(
            ACCESS_FS_ALL,
            ACCESS_NET_BIND_TCP | ACCESS_NET_CONNECT_TCP,
            SCOPE_ABSTRACT_UNIX_SOCKET | SCOPE_SIGNAL,
        )
    )
    for root in executable_roots:
        try:
            fd = os.open(root, os.O_PATH | os.O_CLOEXEC)
        except (FileNotFoundError, NotADirectoryError):
            continue  # not in the view: nothing to run there
        linux.landlock_add_path(ruleset, fd, ACCESS_FS_EXECUTE | ACCESS_FS_READ_FILE)
        os.close(fd)
    return ruleset
