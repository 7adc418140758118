"""What this host offers, found out by trying: each layer of the walls in a child of its own.

A probe changes nothing and leaves nothing behind.  It says what it found and,
where something is missing, what a person can do about it.
"""

from __future__ import annotations

import ctypes
import enum
import errno
import fcntl
import importlib.util
import os
import platform
import shutil
import socket
import struct
import sys
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from safeclaw.sandbox import caseless, confine, landlock, linux, walls
from safeclaw.sandbox import cgroup as groups


class State(enum.StrEnum):
    """How a probe ended: only ``missing`` keeps ``safeclaw run`` from an isolation."""

    OK = "ok"
    WEAKER = "weaker"
    MISSING = "missing"


class Finding(msgspec.Struct, frozen=True):
    """One layer: what was found, and what to do about it."""

    layer: str
    state: State
    found: str
    hint: str = ""


#: What landlock isolation does without.
NAMESPACE_LAYERS = ("namespaces", "view")
#: What full isolation does without.
SHARED_LAYERS = ("temporary",)
#: BPF_RET|BPF_K with SECCOMP_RET_ALLOW (linux/filter.h): a filter that refuses nothing.
_ALLOW_ALL = struct.pack("=HBBI", 0x06, 0, 0, 0x7FFF0000)
_JOURNALD = "/run/systemd/journal/socket"
_ENOUGH_DISK = 256 << 20
#: adjtimex(2): the answer of a clock that nothing keeps right.
_TIME_ERROR = 5
_MODULES = ("click", "cryptography", "msgspec", "psutil", "pyinotify", "pyseccomp", "yaml")


def probe(state: Path) -> list[Finding]:
    """Return what every probe found; ``state`` is where the journal would be."""
    return [
        machine(),
        python(),
        modules(),
        seccomp_library(),
        names(),
        user_namespaces(),
        view(),
        temporary(),
        landlock_floor(),
        seccomp_notify(),
        exec_stop(),
        cgroup(),
        disk(state),
        clock(),
        journald(),
    ]


def _in_child(work: Callable[[], str]) -> tuple[bool, str, int]:
    """Run ``work`` in a child; return whether it went well, its words, and the errno."""
    here, there = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(here)
        status = 1
        try:
            os.write(there, work().encode("utf-8", "replace")[:4000])
            status = 0
        except BaseException as problem:
            number = problem.errno or 0 if isinstance(problem, OSError) else 0
            os.write(there, f"{number}:{problem}".encode("utf-8", "replace")[:4000])
        finally:
            os._exit(status)
    os.close(there)
    with open(here, "rb") as said:
        text = said.read().decode("utf-8", "replace")
    _, ended = os.waitpid(child, 0)
    if ended == 0:
        return True, text, 0
    code, _, words = text.partition(":")
    return False, words or "it was killed", int(code) if code.isdigit() else 0


def _kernel_setting(name: str) -> str | None:
    """Return a value under /proc/sys, or None where this kernel has none."""
    try:
        return Path("/proc/sys", *name.split(".")).read_text().strip()
    except OSError:
        return None


# ---- what safeclaw is made of


def machine() -> Finding:
    """Look at the processor and the kernel's release."""
    name = os.uname()
    found = f"Linux {name.release} on {name.machine}"
    if name.sysname != "Linux" or name.machine not in ("x86_64", "aarch64"):
        return Finding("machine", State.MISSING, found, "Linux on x86_64 or aarch64 is needed")
    return Finding("machine", State.OK, found)


def python() -> Finding:
    """Look at this interpreter, and whether agents in Python find one."""
    found = f"Python {platform.python_version()} at {sys.executable}"
    if shutil.which("python3") is None:
        hint = "put a directory with python3 on PATH: agents in *.py files need it"
        return Finding("python", State.WEAKER, f"{found}; no python3 on PATH", hint)
    return Finding("python", State.OK, found)


def modules() -> Finding:
    """Look for the modules that safeclaw imports."""
    absent = [name for name in _MODULES if importlib.util.find_spec(name) is None]
    if absent:
        hint = "install safeclaw with pip, which brings them"
        return Finding("modules", State.MISSING, f"not there: {', '.join(absent)}", hint)
    return Finding("modules", State.OK, "all there")


def seccomp_library() -> Finding:
    """Look for libseccomp, which builds the filters."""
    hint = "apt-get install libseccomp2"
    try:
        library = ctypes.CDLL("libseccomp.so.2")
    except OSError:
        return Finding("libseccomp", State.MISSING, "libseccomp.so.2 is not there", hint)
    # struct scmp_version { unsigned major, minor, micro; }
    library.seccomp_version.restype = ctypes.POINTER(ctypes.c_uint * 3)
    version = tuple(library.seccomp_version().contents)
    found = ".".join(str(part) for part in version)
    if version < (2, 5, 0):
        return Finding("libseccomp", State.MISSING, f"{found}, 2.5 is needed", hint)
    return Finding("libseccomp", State.OK, found)


def names() -> Finding:
    """Look whether names here are told apart by case, and where they are not."""
    try:
        here = os.getcwd()
    except OSError as problem:
        found = f"the current directory: {os.strerror(problem.errno or 0)}"
        return Finding("names", State.MISSING, found, "call it in a directory that is there")
    shut = caseless.Look(here).places()
    shut = (*shut, *caseless.folding((here,), shut))
    for place in shut:
        if caseless.within(here, place):
            hint = (
                "run agents in a directory on ext4, xfs, btrfs or tmpfs that has not the casefold "
                "attribute; another file system is asked by the names in it: it must not be empty"
            )
            found = f"in {place} they are, or may be, without regard to case"
            return Finding("names", State.MISSING, found, hint)
    more = f"; nothing is allowed in {', '.join(shut)}" if shut else ""
    return Finding("names", State.OK, f"told apart by case in {here}{more}")


# ---- the layers


def user_namespaces() -> Finding:
    """Make the agent's namespaces, as a run would."""

    def work() -> str:
        walls.identity()
        return ", ".join(walls.NAMESPACE_NAMES)

    well, said, number = _in_child(work)
    if well:
        return Finding("namespaces", State.OK, said)
    found, hint = _why_no_namespaces(said, number)
    return Finding("namespaces", State.MISSING, found, hint)


def _why_no_namespaces(said: str, number: int) -> tuple[str, str]:
    if _kernel_setting("user.max_user_namespaces") == "0":
        return (
            "switched off: user.max_user_namespaces is 0",
            "as root: sysctl user.max_user_namespaces=15000; in a container, on its host",
        )
    if _kernel_setting("kernel.unprivileged_userns_clone") == "0" and os.geteuid() != 0:
        return (
            "only for root: kernel.unprivileged_userns_clone is 0",
            "as root: sysctl kernel.unprivileged_userns_clone=1",
        )
    if _kernel_setting("kernel.apparmor_restrict_unprivileged_userns") == "1":
        return (
            f"AppArmor restricts user namespaces ({said})",
            "load an AppArmor profile that grants safeclaw userns, or for the whole machine: "
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        )
    if number == errno.ENOSPC:
        return (
            f"as many as allowed are in use, or none may be made here ({said})",
            "as root: sysctl user.max_user_namespaces=15000; in a container, on its host",
        )
    if number == errno.EPERM:
        return (
            f"not permitted: {said}",
            "in a chroot no user namespace can be made: run outside it; in a systemd unit, "
            "RestrictNamespaces= forbids it; in a container, its seccomp profile has to allow "
            "unshare and mount",
        )
    return said, "a kernel with CONFIG_USER_NS is needed"


def view() -> Finding:
    """Build a small view of the file system and make it the root, as a run would."""

    def inside() -> str:
        walls.put_up(walls.plan(("/usr", "/etc"), (), ()), "/")
        return "tmpfs, proc, bind mounts, pivot_root"

    def work() -> str:
        walls.identity()
        well, said, number = _in_child(inside)
        if not well:
            raise OSError(number, said)
        return said

    well, said, _ = _in_child(work)
    if well:
        return Finding("view", State.OK, said)
    return Finding(
        "view",
        State.MISSING,
        said,
        "see namespaces; where those are well, a container hides parts of /proc "
        "(it has to be started with an unmasked /proc)",
    )


def temporary() -> Finding:
    """Make the directories that stand for a /tmp of its own in landlock isolation."""
    try:
        own = confine.Own.make()
    except OSError as problem:
        hint = "mount a tmpfs at /tmp; full isolation has one of its own"
        return Finding("temporary", State.MISSING, f"/tmp: {problem.strerror}", hint)
    own.remove()
    return Finding("temporary", State.OK, "/tmp, /dev/shm" if own.shared else "/tmp, no /dev/shm")


def landlock_floor() -> Finding:
    """Ask for the ABI, and build the floor."""
    abi = linux.landlock_abi()
    if abi < landlock.REQUIRED_ABI:
        found = f"ABI {abi} without {', '.join(landlock.lacking(abi))}" if abi else "not there"
        hint = "boot Linux 6.12 or later with landlock in its lsm= list"
        if abi:
            hint += "; full isolation does without those: --allow-degraded landlock-abi"
        return Finding(
            "landlock", State.MISSING, f"{found}, ABI {landlock.REQUIRED_ABI} is needed", hint
        )

    def work() -> str:
        ruleset = landlock.build(("/usr",))
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        linux.landlock_restrict_self(ruleset)
        return f"ABI {abi}"

    well, said, _ = _in_child(work)
    if well:
        return Finding("landlock", State.OK, said)
    return Finding("landlock", State.MISSING, said, "a container's seccomp profile may refuse it")


def seccomp_notify() -> Finding:
    """Load a filter with a listener, and look at the flags the kernel knows."""

    def work() -> str:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        flags = linux.SECCOMP_FILTER_FLAG_NEW_LISTENER
        listener = linux.load_filter(
            _ALLOW_ALL, flags | linux.SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV
        )
        try:
            wake = linux.SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
            fcntl.ioctl(listener, linux.SECCOMP_IOCTL_NOTIF_SET_FLAGS, wake)
        except OSError:
            return "slow"
        return "listener, WAIT_KILLABLE_RECV, SYNC_WAKE_UP"

    well, said, number = _in_child(work)
    if well and said == "slow":
        found = "listener, WAIT_KILLABLE_RECV; no SYNC_WAKE_UP"
        return Finding("seccomp", State.WEAKER, found, "Linux 6.6 or later is faster")
    if well:
        return Finding("seccomp", State.OK, said)
    if number == errno.EBUSY:
        hint = "something else listens on this process's system calls: run outside it"
    else:
        hint = "Linux 5.19 or later; a container's seccomp profile has to allow seccomp(2)"
    return Finding("seccomp", State.MISSING, said, hint)


def exec_stop() -> Finding:
    """Trace a child without any capability, as the gate at the exec stop does."""

    def work() -> str:
        linux.drop_capabilities()
        here, there = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(there)
            os.read(here, 1)
            os._exit(0)
        try:
            linux.ptrace(linux.PTRACE_SEIZE, child, linux.PTRACE_O_TRACEEXEC)
            pidfd = os.pidfd_open(child)
            os.close(linux.pidfd_getfd(pidfd, here))
            os.close(pidfd)
        finally:
            os.close(there)
            os.close(here)
            os.waitpid(child, 0)
        return "ptrace and pidfd_getfd on its own children"

    well, said, _ = _in_child(work)
    scope = _kernel_setting("kernel.yama.ptrace_scope")
    shown = "" if scope is None else f"; kernel.yama.ptrace_scope is {scope}"
    if well:
        return Finding("exec stop", State.OK, said + shown)
    return Finding(
        "exec stop",
        State.MISSING,
        said + shown,
        "as root: sysctl kernel.yama.ptrace_scope=1; a container's seccomp profile has to "
        "allow ptrace and pidfd_getfd",
    )


# ---- what makes it better


def cgroup() -> Finding:
    """Look for a cgroup v2 of one's own, with the controllers that limits need."""
    try:
        place = groups.delegated(("cpu", "memory", "pids"))
    except groups.CgroupError as problem:
        hint = "start it in a delegated scope: systemd-run --user --scope -p Delegate=yes safeclaw"
        return Finding("cgroup", State.WEAKER, f"{problem}; rlimits only", hint + " run")
    return Finding("cgroup", State.OK, f"{place}: cpu memory pids")


def disk(state: Path) -> Finding:
    """Look at where the journal would be: writable, with room, on a real file system."""
    place = state
    while not place.exists() and place != place.parent:
        place = place.parent
    hint = "give another place: XDG_STATE_HOME=/path safeclaw run"
    if not place.is_dir() or not os.access(place, os.W_OK | os.X_OK):
        return Finding("disk", State.MISSING, f"{place} cannot be written", hint)
    room = os.statvfs(place)
    free = room.f_bavail * room.f_frsize
    found = f"{state}: {free >> 20} MiB free"
    if room.f_flag & os.ST_RDONLY or free < 1 << 20:
        return Finding("disk", State.MISSING, found, hint)
    if free < _ENOUGH_DISK:
        return Finding("disk", State.WEAKER, found, "a full disk stops every agent: make room")
    return Finding("disk", State.OK, found)


def clock() -> Finding:
    """Look whether something keeps the clock right: the journal's times are its word."""
    time.clock_gettime(time.CLOCK_BOOTTIME)
    found = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    libc = ctypes.CDLL(None, use_errno=True)
    # struct timex (adjtimex(2)) with modes 0 only reads; 208 bytes on 64-bit machines
    state = libc.adjtimex(ctypes.create_string_buffer(256))
    if state in (_TIME_ERROR, -1):
        hint = "systemctl enable --now systemd-timesyncd (in a container, on its host)"
        return Finding("clock", State.WEAKER, f"{found}, not synchronised", hint)
    return Finding("clock", State.OK, f"{found}, synchronised")


def journald() -> Finding:
    """Connect to journald's socket."""
    hint = "without it only the chain itself remembers; install and start systemd-journald"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(_JOURNALD)
        except OSError as problem:
            found = f"{_JOURNALD}: {os.strerror(problem.errno or 0)}"
            return Finding("journald", State.WEAKER, found, hint)
    return Finding("journald", State.OK, f"{_JOURNALD} is there")
