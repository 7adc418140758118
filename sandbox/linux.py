"""Raw Linux: constants as the kernel headers name them, and one function a call.

Every function checks its result and raises :class:`OSError` with the errno and
what was being done.  Layouts are those of ``linux/seccomp.h``,
``linux/openat2.h``, ``linux/landlock.h``, ``linux/ptrace.h`` (kernel 6.x); the
sizes are asserted by ``tests/unit/sandbox/test_linux.py``.
"""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import struct
import threading
from array import array
from collections.abc import Sequence

# linux/sched.h
CLONE_NEWNS = 0x00020000
CLONE_NEWCGROUP = 0x02000000
CLONE_NEWUTS = 0x04000000
CLONE_NEWIPC = 0x08000000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
CLONE_NEWNET = 0x40000000
CLONE_NEWTIME = 0x00000080

# linux/mount.h
MS_RDONLY = 0x1
MS_NOSUID = 0x2
MS_NODEV = 0x4
MS_NOEXEC = 0x8
MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000
MS_SLAVE = 0x80000
MNT_DETACH = 0x2

# linux/prctl.h
PR_SET_PDEATHSIG = 1
PR_SET_DUMPABLE = 4
PR_CAPBSET_DROP = 24
PR_SET_CHILD_SUBREAPER = 36
PR_SET_NO_NEW_PRIVS = 38
PR_CAP_AMBIENT = 47
PR_CAP_AMBIENT_CLEAR_ALL = 4

# linux/openat2.h
RESOLVE_NO_MAGICLINKS = 0x02
RESOLVE_NO_SYMLINKS = 0x04
RESOLVE_IN_ROOT = 0x10

# asm-generic/fcntl.h; os has no names for these two everywhere
O_PATH = os.O_PATH
O_TMPFILE = os.O_TMPFILE
O_LARGEFILE = 0o100000 if os.uname().machine == "x86_64" else 0o400000
AT_FDCWD = -100
AT_EMPTY_PATH = 0x1000
AT_SYMLINK_NOFOLLOW = 0x100
AT_SYMLINK_FOLLOW = 0x400
AT_REMOVEDIR = 0x200
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2

# linux/seccomp.h
SECCOMP_SET_MODE_FILTER = 1
SECCOMP_FILTER_FLAG_NEW_LISTENER = 1 << 3
SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV = 1 << 5
SECCOMP_USER_NOTIF_FLAG_CONTINUE = 1
SECCOMP_ADDFD_FLAG_SETFD = 1
SECCOMP_ADDFD_FLAG_SEND = 2
SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP = 1
SECCOMP_IOCTL_NOTIF_RECV = 0xC0502100
SECCOMP_IOCTL_NOTIF_SEND = 0xC0182101
SECCOMP_IOCTL_NOTIF_ID_VALID = 0x40082102
SECCOMP_IOCTL_NOTIF_ADDFD = 0x40182103
SECCOMP_IOCTL_NOTIF_SET_FLAGS = 0x40082104
#: struct seccomp_notif: id, pid, flags, nr, arch, instruction_pointer, args[6]
NOTIF = struct.Struct("=QIIiIQ6Q")
#: struct seccomp_notif_resp: id, val, error, flags
NOTIF_RESP = struct.Struct("=QqiI")
#: struct seccomp_notif_addfd: id, flags, srcfd, newfd, newfd_flags
NOTIF_ADDFD = struct.Struct("=QIIII")

# linux/ptrace.h
PTRACE_DETACH = 17
PTRACE_SEIZE = 0x4206
PTRACE_INTERRUPT = 0x4207
PTRACE_O_TRACEEXEC = 1 << 4
PTRACE_O_EXITKILL = 1 << 20
PTRACE_EVENT_EXEC = 4
PTRACE_EVENT_STOP = 128
WNOTHREAD = 0x20000000
WALL = 0x40000000

# asm/unistd.h: what glibc has no wrapper for, x86_64 then aarch64
_NUMBERS = {
    "x86_64": {"seccomp": 317, "pivot_root": 155, "capset": 126, "renameat2": 316},
    "aarch64": {"seccomp": 277, "pivot_root": 41, "capset": 91, "renameat2": 276},
}
_NR = _NUMBERS.get(os.uname().machine, _NUMBERS["x86_64"])
_NR_OPENAT2 = 437
_NR_PIDFD_GETFD = 438
_NR_LANDLOCK_CREATE_RULESET = 444
_NR_LANDLOCK_ADD_RULE = 445
_NR_LANDLOCK_RESTRICT_SELF = 446

_libc = ctypes.CDLL(None, use_errno=True)
_syscall = _libc.syscall
_syscall.restype = ctypes.c_long
_mount = _libc.mount
_mount.argtypes = (
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_char_p,
    ctypes.c_ulong,
    ctypes.c_char_p,
)
_prctl = _libc.prctl
_prctl.argtypes = (ctypes.c_int,) + (ctypes.c_ulong,) * 4
_ptrace = _libc.ptrace
_ptrace.argtypes = (ctypes.c_long, ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p)
_ptrace.restype = ctypes.c_long
_readv = _libc.process_vm_readv
_readv.restype = ctypes.c_ssize_t
_readv.argtypes = (
    ctypes.c_int,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_void_p,
    ctypes.c_ulong,
    ctypes.c_ulong,
)
_writev = _libc.process_vm_writev
_writev.restype = ctypes.c_ssize_t
_writev.argtypes = _readv.argtypes


class OpenHow(ctypes.Structure):
    """struct open_how (linux/openat2.h)."""

    _fields_ = (
        ("flags", ctypes.c_uint64),
        ("mode", ctypes.c_uint64),
        ("resolve", ctypes.c_uint64),
    )


class Iovec(ctypes.Structure):
    """struct iovec (bits/types/struct_iovec.h)."""

    _fields_ = (("base", ctypes.c_void_p), ("length", ctypes.c_size_t))


class RulesetAttr(ctypes.Structure):
    """struct landlock_ruleset_attr, ABI 6 (linux/landlock.h)."""

    _fields_ = (
        ("handled_access_fs", ctypes.c_uint64),
        ("handled_access_net", ctypes.c_uint64),
        ("scoped", ctypes.c_uint64),
    )


class PathBeneathAttr(ctypes.Structure):
    """struct landlock_path_beneath_attr, packed (linux/landlock.h)."""

    _pack_ = 1
    _fields_ = (("allowed_access", ctypes.c_uint64), ("parent_fd", ctypes.c_int32))


def _failed(doing: str) -> OSError:
    code = ctypes.get_errno()
    return OSError(code, f"{doing}: {os.strerror(code)}")


def _check(result: int, doing: str) -> int:
    if result < 0:
        raise _failed(doing)
    return result


def mount(source: str, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    """mount(2)."""
    result = _mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode() if kind else None,
        flags,
        os.fsencode(data) if data else None,
    )
    _check(result, f"mount {kind or 'bind'} {target}")


def unmount(target: str, flags: int = MNT_DETACH) -> None:
    """umount2(2)."""
    _check(_libc.umount2(os.fsencode(target), flags), f"umount {target}")


def pivot_root(new: str, old: str) -> None:
    """pivot_root(2)."""
    result = _syscall(
        ctypes.c_long(_NR["pivot_root"]),
        ctypes.c_char_p(os.fsencode(new)),
        ctypes.c_char_p(os.fsencode(old)),
    )
    _check(result, f"pivot_root {new}")


def unshare(flags: int) -> None:
    """unshare(2)."""
    _check(_libc.unshare(ctypes.c_int(flags)), f"unshare {flags:#x}")


def prctl(option: int, a: int = 0, b: int = 0, c: int = 0, d: int = 0) -> int:
    """prctl(2)."""
    return _check(_prctl(option, a, b, c, d), f"prctl {option}")


def drop_capabilities() -> None:
    """Empty the bounding, ambient and all three process sets (capabilities(7))."""
    with open("/proc/sys/kernel/cap_last_cap") as source:
        last = int(source.read())
    for capability in range(last + 1):
        try:
            prctl(PR_CAPBSET_DROP, capability)
        except PermissionError:
            break  # no CAP_SETPCAP: then no set-uid file can grant it under no_new_privs either
    prctl(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL)
    header = struct.pack("=Ii", 0x20080522, 0)  # _LINUX_CAPABILITY_VERSION_3, self
    data = bytes(24)
    result = _syscall(ctypes.c_long(_NR["capset"]), ctypes.c_char_p(header), ctypes.c_char_p(data))
    _check(result, "capset")


def load_filter(program: bytes, flags: int) -> int:
    """seccomp(2) SECCOMP_SET_MODE_FILTER; returns the listener when one was asked for."""

    class SockFprog(ctypes.Structure):
        _fields_ = (("length", ctypes.c_ushort), ("filter", ctypes.c_char_p))

    fprog = SockFprog(len(program) // 8, program)
    result = _syscall(
        ctypes.c_long(_NR["seccomp"]),
        ctypes.c_ulong(SECCOMP_SET_MODE_FILTER),
        ctypes.c_ulong(flags),
        ctypes.byref(fprog),
    )
    return _check(result, "load the seccomp filter")


_openat2 = ctypes.CFUNCTYPE(
    ctypes.c_long,
    ctypes.c_long,
    ctypes.c_int,
    ctypes.c_char_p,
    ctypes.c_void_p,
    ctypes.c_size_t,
    use_errno=True,
)(("syscall", _libc))


#: syscall(2) without conversions, for openat2 by prepared arguments: -1 on any error, whose
#: errno is lost.  Its own handle, because a function's types belong to the handle.
raw_openat2 = ctypes.CDLL(None)["syscall"]
raw_openat2.restype = ctypes.c_long


@functools.lru_cache(maxsize=256)
def _open_how(flags: int, mode: int, resolve: int) -> tuple[OpenHow, int]:
    """Return a constant open_how and its address; the kernel only reads it."""
    how = OpenHow(flags, mode, resolve)
    return how, ctypes.addressof(how)


def openat2(dirfd: int, path: bytes, flags: int, mode: int = 0, resolve: int = 0) -> int:
    """openat2(2); retries EAGAIN, which RESOLVE_IN_ROOT gives when a rename raced with ``..``."""
    how = _open_how(flags, mode, resolve)
    for _ in range(64):
        result: int = _openat2(_NR_OPENAT2, dirfd, path, how[1], 24)
        if result >= 0:
            return result
        if ctypes.get_errno() not in (errno.EAGAIN, errno.EINTR):
            break
    code = ctypes.get_errno()
    raise OSError(code, os.strerror(code))


def open_once(path: str, flags: int) -> int:
    """open(2) that is not begun again after a signal, as os.open is: EINTR."""
    return _check(_libc.open(os.fsencode(path), ctypes.c_int(flags)), f"open {path}")


def pidfd_getfd(pidfd: int, fd: int) -> int:
    """pidfd_getfd(2): the caller's own duplicate, close-on-exec."""
    result = _syscall(
        ctypes.c_long(_NR_PIDFD_GETFD),
        ctypes.c_long(pidfd),
        ctypes.c_long(fd),
        ctypes.c_long(0),
    )
    return _check(result, "pidfd_getfd")


def renameat2(olddir: int, old: bytes, newdir: int, new: bytes, flags: int) -> None:
    """renameat2(2)."""
    result = _syscall(
        ctypes.c_long(_NR["renameat2"]),
        ctypes.c_long(olddir),
        ctypes.c_char_p(old),
        ctypes.c_long(newdir),
        ctypes.c_char_p(new),
        ctypes.c_long(flags),
    )
    _check(result, "renameat2")


def ptrace(request: int, pid: int, data: int = 0) -> None:
    """ptrace(2), for the requests that take no address."""
    _check(_ptrace(request, pid, None, data), f"ptrace {request:#x}")


class _Window(threading.local):
    """A buffer with its iovecs for one thread, so that a short read allocates nothing."""

    SIZE = 256

    def __init__(self) -> None:
        self.buffer = ctypes.create_string_buffer(self.SIZE)
        self.view = memoryview(self.buffer)
        self.local = Iovec(ctypes.addressof(self.buffer), self.SIZE)
        self.remote = Iovec(0, 0)
        self.local_at = ctypes.addressof(self.local)
        self.remote_at = ctypes.addressof(self.remote)


_window = _Window()


def read_memory(pid: int, address: int, size: int) -> bytes:
    """process_vm_readv(2): up to ``size`` bytes, cut at the first page that is not there."""
    if size <= _Window.SIZE:
        window = _window
        window.remote.base = address
        window.remote.length = size
        got = _readv(pid, window.local_at, 1, window.remote_at, 1, 0)
        return bytes(window.view[: _check(got, "read the caller's memory")])
    return read_memory_parts(pid, ((address, size),))


def read_memory_parts(pid: int, parts: Sequence[tuple[int, int]]) -> bytes:
    """process_vm_readv(2): (address, size) of each, one behind the other, cut as above."""
    # not as ctypes' arrays: to make a type for each length takes longer than to read
    buffer = bytearray(sum(size for _, size in parts))
    local = Iovec(ctypes.addressof(ctypes.c_char.from_buffer(buffer)), len(buffer))
    remote = array("Q", [word for part in parts for word in part])
    got = _readv(pid, ctypes.byref(local), 1, remote.buffer_info()[0], len(parts), 0)
    return bytes(memoryview(buffer)[: _check(got, "read the caller's memory")])


def write_memory(pid: int, address: int, data: bytes) -> None:
    """process_vm_writev(2): all of ``data`` or OSError."""
    buffer = ctypes.create_string_buffer(data, len(data))
    local = Iovec(ctypes.addressof(buffer), len(data))
    remote = Iovec(address, len(data))
    _check(
        _writev(pid, ctypes.byref(local), 1, ctypes.byref(remote), 1, 0),
        "write the caller's memory",
    )


def share_arenas(count: int) -> None:
    """mallopt(3) M_ARENA_MAX: threads allocate from so many; where libc has such a thing."""
    mallopt = getattr(_libc, "mallopt", None)
    if mallopt is not None:
        mallopt(ctypes.c_int(-8), ctypes.c_int(count))


def landlock_abi() -> int:
    """The kernel's Landlock ABI (landlock_create_ruleset(2)); 0 when there is none."""
    result = _syscall(
        ctypes.c_long(_NR_LANDLOCK_CREATE_RULESET),
        None,
        ctypes.c_size_t(0),
        ctypes.c_uint32(1),
    )
    return max(0, int(result))


def landlock_create_ruleset(attr: RulesetAttr) -> int:
    """landlock_create_ruleset(2)."""
    result = _syscall(
        ctypes.c_long(_NR_LANDLOCK_CREATE_RULESET),
        ctypes.byref(attr),
        ctypes.c_size_t(ctypes.sizeof(attr)),
        ctypes.c_uint32(0),
    )
    return _check(result, "landlock_create_ruleset")


def landlock_add_path(ruleset: int, parent_fd: int, access: int) -> None:
    """landlock_add_rule(2) LANDLOCK_RULE_PATH_BENEATH."""
    attr = PathBeneathAttr(access, parent_fd)
    result = _syscall(
        ctypes.c_long(_NR_LANDLOCK_ADD_RULE),
        ctypes.c_int(ruleset),
        ctypes.c_int(1),
        ctypes.byref(attr),
        ctypes.c_uint32(0),
    )
    _check(result, "landlock_add_rule")


def landlock_restrict_self(ruleset: int) -> None:
    """landlock_restrict_self(2)."""
    result = _syscall(
        ctypes.c_long(_NR_LANDLOCK_RESTRICT_SELF), ctypes.c_int(ruleset), ctypes.c_uint32(0)
    )
    _check(result, "landlock_restrict_self")


def utimensat(dirfd: int, path: bytes, times: bytes | None, flags: int) -> None:
    """utimensat(2); ``times`` is two raw struct timespec or None for now."""
    result = _libc.utimensat(
        ctypes.c_int(dirfd), ctypes.c_char_p(path), ctypes.c_char_p(times), ctypes.c_int(flags)
    )
    _check(result, "utimensat")


def make_read_only(path: str) -> None:
    """mount_setattr(2), recursive: MOUNT_ATTR_RDONLY, NOSUID; never loosens a locked flag."""
    attributes = struct.pack("=QQQQ", 0x1 | 0x2, 0, 0, 0)
    result = _syscall(
        ctypes.c_long(442),
        ctypes.c_long(AT_FDCWD),
        ctypes.c_char_p(os.fsencode(path)),
        ctypes.c_long(0x8000),  # AT_RECURSIVE
        ctypes.c_char_p(attributes),
        ctypes.c_size_t(32),
    )
    _check(result, f"make {path} read-only")
