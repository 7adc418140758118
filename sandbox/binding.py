"""bind(2) of a Unix path, under the very name that the caller gave.

The kernel keeps the text it is passed and getsockname(2) tells it: servers hand it
on to their clients.  But the supervisor has another root, and must use the directory
that was pinned and judged.  So a child, in a user and mount namespace made for
this, stands in a root where the text leads to that directory, and binds there.
"""

from __future__ import annotations

import ctypes
import errno
import os
import socket
import struct

from safeclaw.sandbox import linux
from safeclaw.sandbox.resolve import Pinned, Resolver, error

_SUN_MAX = 108
#: Where the child finds /proc, in a root made for a text that has a directory.
_PROC = b".proc"
_STAGES = "/tmp"
_libc = ctypes.CDLL(None, use_errno=True)


def bind(
    resolver: Resolver, sock: socket.socket, directory: Pinned, name: str, text: bytes, umask: int
) -> None:
    """Bind ``sock`` to ``name`` in ``directory``, which the caller called ``text``.

    Where the text cannot be made to lead there, the socket's name is another one for the
    same file.  Takes some milliseconds.  Raises OSError as bind(2).
    """
    import shutil  # both take longer to import than a start has, and most sessions bind no path
    import tempfile

    head, stage = _directories(text, os.fsencode(name)), b""
    if head:
        stage = os.fsencode(tempfile.mkdtemp(prefix="safeclaw-", dir=_STAGES))
    try:
        # SAFETY: the agent may not change what is made there: it could with no root of its own
        if stage and _reachable(resolver, os.fsdecode(stage)):
            head = None
        child = os.fork()
        if child == 0:
            code = errno.EPERM
            try:
                code = _child(sock.fileno(), directory.fd, name, text, stage, head, umask)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if stage:
            shutil.rmtree(stage)
    if code:
        raise error(code if code > 0 else errno.EINTR)


def _directories(text: bytes, name: bytes) -> bytes | None:
    """Return the names before the last one, or None for a text that nothing can be made for."""
    *parts, last = text.split(b"/")
    # SAFETY: what is made for the text is made in the stage: it may not lead up from there.
    if last != name or b".." in parts:
        return None
    return b"/".join(part for part in parts if part not in (b"", b"."))


def _reachable(resolver: Resolver, stage: str) -> bool:
    try:
        os.close(resolver.open(stage, linux.O_PATH))
    except OSError:
        return False
    return True


def _child(
    number: int,
    directory: int,
    name: str,
    text: bytes,
    stage: bytes,
    head: bytes | None,
    umask: int,
) -> int:
    """Return 0 or the errno of bind(2)."""
    if head is None or not _enter(directory, text, stage, head):
        text = b"/proc/self/fd/%d/%b" % (directory, os.fsencode(name))
    if len(text) > _SUN_MAX:
        return errno.ENAMETOOLONG
    os.umask(umask)
    address = struct.pack("=H", socket.AF_UNIX) + text.ljust(_SUN_MAX, b"\0")
    return ctypes.get_errno() if _libc.bind(number, address, len(address)) else 0


def _enter(directory: int, text: bytes, stage: bytes, head: bytes) -> bool:
    """Stand where ``text``, whose directories are ``head``, leads to ``directory``.

    Returns False, with the root as it was, where that cannot be.
    """
    if not head and not text.startswith(b"/"):
        os.fchdir(directory)
        return True
    before = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
        if head:
            _furnish(directory, stage, head)
        os.chroot(stage or b"/proc/self/fd/%d" % directory)
        os.chdir("/")
        # SAFETY: nothing that the agent can change is walked here but what was pinned, so what
        # the name leads to now is what bind will find
        found = os.open(head or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        if os.path.sameopenfile(directory, found):
            return True
    except OSError:
        pass
    os.fchdir(before)
    os.chroot(".")
    return False


def _furnish(directory: int, stage: bytes, head: bytes) -> None:
    """Make the names in ``head`` in the stage, so that they lead to ``directory``."""
    proc, place = stage + b"/" + _PROC, stage + b"/" + head
    os.mkdir(proc)
    os.makedirs(os.path.dirname(place), exist_ok=True)
    os.symlink(b"/%b/self/fd/%d" % (_PROC, directory), place)
    linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
    linux.mount("/proc", os.fsdecode(proc), None, linux.MS_BIND | linux.MS_REC)
