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
import shutil
import socket
import struct
import tempfile

from safeclaw.sandbox import linux
from safeclaw.sandbox.resolve import Pinned, error

_SUN_MAX = 108
#: Where the child finds /proc, in a root made for a text that has a directory.
_PROC = b".proc"
#: Not for the agent to touch: its own /tmp is another.
_STAGES = "/tmp"
_libc = ctypes.CDLL(None, use_errno=True)


def bind(sock: socket.socket, directory: Pinned, name: str, text: bytes, umask: int) -> None:
    """Bind ``sock`` to ``name`` in ``directory``, which the caller called ``text``.

    Where no namespace can be had, the socket's name is another one for the same
    file.  For agents with a mount namespace of their own; takes some milliseconds.
    Raises OSError as bind(2).
    """
    stage = b""
    if _directories(text):
        stage = os.fsencode(tempfile.mkdtemp(prefix="safeclaw-", dir=_STAGES))
    try:
        child = os.fork()
        if child == 0:
            code = errno.EPERM
            try:
                code = _child(sock.fileno(), directory.fd, os.fsencode(name), text, stage, umask)
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        if stage:
            shutil.rmtree(stage)
    if code:
        raise error(code if code > 0 else errno.EINTR)


def _directories(text: bytes) -> list[bytes]:
    """Return the components that a name is in, without those that go nowhere."""
    return [part for part in text.split(b"/")[:-1] if part not in (b"", b".")]


def _child(number: int, directory: int, name: bytes, text: bytes, stage: bytes, umask: int) -> int:
    """Return 0 or the errno of bind(2)."""
    try:
        _enter(directory, text, stage)
    except OSError:
        text = b"/proc/self/fd/%d/%b" % (directory, name)
    if len(text) > _SUN_MAX:
        return errno.ENAMETOOLONG
    os.umask(umask)
    address = struct.pack("=H", socket.AF_UNIX) + text.ljust(_SUN_MAX, b"\0")
    return ctypes.get_errno() if _libc.bind(number, address, len(address)) else 0


def _enter(directory: int, text: bytes, stage: bytes) -> None:
    """Stand where ``text`` leads to ``directory``; OSError, with the root as it was, if not."""
    if not stage and not text.startswith(b"/"):
        os.fchdir(directory)
        return
    root = b"/proc/self/fd/%d" % directory
    head = b"/".join(_directories(text))
    if stage:
        place = stage + b"/" + head
        os.mkdir(stage + b"/" + _PROC)
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.symlink(b"/%b/self/fd/%d" % (_PROC, directory), place)
        root = stage
    linux.unshare(linux.CLONE_NEWUSER | linux.CLONE_NEWNS)
    if stage:
        linux.mount("none", "/", None, linux.MS_REC | linux.MS_SLAVE)
        there = os.fsdecode(stage + b"/" + _PROC)
        linux.mount("/proc", there, None, linux.MS_BIND | linux.MS_REC)
    before = os.open("/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    os.chroot(root)
    os.chdir("/")
    # SAFETY: nothing that the agent can change is walked here but what was pinned, so what
    # the name leads to now is what bind will find
    found = os.open(head or "/", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    if not os.path.sameopenfile(directory, found):
        os.fchdir(before)
        os.chroot(".")
        raise error(errno.EXDEV)
