"""Who is at the other end of a socket, and what they may do.

Decided by the kernel's word (``SO_PEERCRED``, ``SO_PEERGROUPS``; unix(7), socket(7)),
never by anything a peer says.  Without a system daemon there is one user, who may
do everything with their own broker.
"""

from __future__ import annotations

import array
import enum
import errno
import grp
import os
import socket
import struct

import msgspec

_SO_PEERGROUPS = 59  # asm-generic/socket.h; the socket module has no name for it
_SO_PEERPIDFD = 77
_GROUPS_MAX = 65536


class Role(enum.Enum):
    """What somebody may do with a broker."""

    RUN = "run"  # start sessions, see and stop one's own
    ADMIN = "admin"  # agents, policies, everybody's sessions and approvals
    AUDIT = "audit"  # read everything, change nothing


class Peer(msgspec.Struct, frozen=True):
    """A process as it was when it connected."""

    pid: int
    uid: int
    gid: int
    groups: frozenset[int] = frozenset()


class Groups(msgspec.Struct, frozen=True):
    """The names of the Unix groups whose members have a role."""

    run: str = "safeclaw"
    admin: str = "safeclaw-admin"
    audit: str = "safeclaw-audit"


def peer_of(sock: socket.socket) -> Peer:
    """Return who connected to, or from, the other end of a Unix socket; OSError."""
    pid, uid, gid = struct.unpack("iII", sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    size = 64
    while True:
        try:
            data = sock.getsockopt(socket.SOL_SOCKET, _SO_PEERGROUPS, size * 4)
            break
        except OSError as problem:
            # ERANGE says that there are more; an unbound pair of sockets has none to tell
            if problem.errno != errno.ERANGE or size >= _GROUPS_MAX:
                data = b""
                break
            size *= 4
    return Peer(pid, uid, gid, frozenset(array.array("I", data)))


def process_of(sock: socket.socket, peer: Peer) -> int | None:
    """Return a pidfd of who connected; None where it has gone.  OSError: no descriptor is left.

    Before Linux 6.5 it is of who has the number now, if that is a process of the same user.
    """
    try:
        return sock.getsockopt(socket.SOL_SOCKET, _SO_PEERPIDFD)
    except OSError as problem:
        _require_descriptor(problem)
        if problem.errno != errno.ENOPROTOOPT:
            return None
    try:
        process = os.pidfd_open(peer.pid)
    except OSError as problem:
        _require_descriptor(problem)
        return None
    # SAFETY: the descriptor stays this process's; only then is it asked whose process it is, so
    # that nobody can have somebody else's killed by leaving their number to it.
    if _real_uid(peer.pid) == peer.uid:
        return process
    os.close(process)
    return None


def _require_descriptor(problem: OSError) -> None:
    """Raise a problem that says nothing of the process."""
    if problem.errno in (errno.EMFILE, errno.ENFILE):
        raise problem


def _real_uid(pid: int) -> int | None:
    try:
        with open(f"/proc/{pid}/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("Uid:"))
    except OSError:
        return None


class Access:
    """Maps a peer to its roles.  ``groups`` is None for a broker of one user's own."""

    def __init__(self, owner: int, groups: Groups | None) -> None:
        self._owner = owner
        self._groups = groups

    @property
    def system(self) -> bool:
        """Whether several users share this broker."""
        return self._groups is not None

    def roles(self, peer: Peer) -> frozenset[Role]:
        """Return what the peer may do; users and groups are looked up anew each time."""
        if self._groups is None:
            return frozenset(Role) if peer.uid in (self._owner, 0) else frozenset[Role]()
        if peer.uid == 0:
            return frozenset(Role)
        # SAFETY: whoever has subordinate uids (subuid(5)) can take 65536 of them, and keeps their
        # groups: they would be as many administrators, and as many users, each with a share.
        if not _known(peer.uid):
            return frozenset()
        found = set[Role]()
        if self._member(peer, self._groups.admin):
            found |= {Role.RUN, Role.ADMIN, Role.AUDIT}
        if self._member(peer, self._groups.audit):
            found.add(Role.AUDIT)
        if self._member(peer, self._groups.run):
            found.add(Role.RUN)
        return frozenset(found)

    @staticmethod
    def _member(peer: Peer, name: str) -> bool:
        try:
            number = grp.getgrnam(name).gr_gid
        except KeyError:
            return False  # SAFETY: a group that is not there has no members
        return number == peer.gid or number in peer.groups


def _known(uid: int) -> bool:
    import pwd

    try:
        pwd.getpwuid(uid)
    except KeyError:
        return False
    return True


def user_name(uid: int) -> str:
    """Return a user's name for a person to read; the number where there is none."""
    import pwd

    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)
