"""Files that are the kernel's: its processes, its devices, its interfaces, wherever mounted."""

from __future__ import annotations

import ctypes
import os
import stat

_libc = ctypes.CDLL(None, use_errno=True)
_PROC = 0x9FA0
#: File systems that are the kernel's (linux/magic.h): proc; sysfs, devpts, debugfs, tracefs,
#: securityfs, configfs, binfmt_misc, pstore, bpf, efivarfs, both cgroups, SELinux's.
_KERNELS = frozenset((
    _PROC, 0x62656572, 0x1CD1, 0x64626720, 0x74726163, 0x73636673, 0x62656570, 0x42494E4D,
    0x6165676C, 0xCAFE4A11, 0xDE5E81E4, 0x27E0EB, 0x63677270, 0xF97CFF8C,
))  # fmt: skip
#: Where they belong: what a session has of its own there, or what rules and walls are about.
_KNOWN = ("/proc", "/dev", "/sys")
_BELOW_KNOWN = tuple(f"{place}/" for place in _KNOWN)
#: The devices of ``walls``: null zero full random urandom, tty.
_DEVICES = frozenset(
    os.makedev(major, minor) for major, minor in ((1, 3), (1, 5), (1, 7), (1, 8), (1, 9), (5, 0))
)


def _file_system(fd: int) -> int:
    """Return the type of the file system that a file lies on (fstatfs(2)); proc where in doubt."""
    buffer = ctypes.create_string_buffer(256)
    if _libc.fstatfs(fd, buffer):
        return _PROC
    return int.from_bytes(buffer.raw[:8], "little")


def is_proc(fd: int) -> bool:
    """Whether a file lies on a proc file system, wherever that is mounted."""
    return _file_system(fd) == _PROC


def is_device(fd: int) -> bool:
    """Whether a file is a device of the host's that no session has."""
    info = os.fstat(fd)
    kind = stat.S_IFMT(info.st_mode)
    return kind == stat.S_IFBLK or (kind == stat.S_IFCHR and info.st_rdev not in _DEVICES)


def is_hosts(fd: int, path: str) -> bool:
    """Whether a file is a process, a device or an interface of the host's kernel, where none is.

    SAFETY: for a chroot somebody may have mounted them elsewhere than where a session has its own
    and rules know them.  This process is among them, whose own memory the kernel lets it open.
    """
    known = path.startswith(_BELOW_KNOWN) or path in _KNOWN
    return not known and (is_device(fd) or _file_system(fd) in _KERNELS)
