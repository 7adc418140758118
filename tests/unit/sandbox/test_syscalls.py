"""What each call meets, on each architecture: the programs are run over the calls' numbers.

The names are those of the threat model; what the kernel would answer is the stricter of the
two programs.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from functools import cache

import pyseccomp as seccomp
import pytest

from safeclaw.sandbox import syscalls
from tests.unit.sandbox import bpf


def words(text: str) -> list[str]:
    """Return the words of a text."""
    return text.split()


#: A program is made of the names that the machine it is made on has: of those of x86_64, all.
ARCHITECTURES = {
    "x86_64": {"x86_64": seccomp.Arch.X86_64, "aarch64": seccomp.Arch.AARCH64},
    "aarch64": {"aarch64": seccomp.Arch.AARCH64},
}[os.uname().machine]
#: linux/seccomp.h
KILL, ERRNO, NOTIFY, ALLOW = 0x00000000, 0x00050000, 0x7FC00000, 0x7FFF0000
_ACTION = 0xFFFF0000
MEDIATED = words("""
open creat openat openat2 truncate mkdir mkdirat mknod mknodat symlink symlinkat link linkat
unlink rmdir unlinkat rename renameat renameat2 chmod fchmodat fchmodat2 fchmod chown lchown
fchownat fchown utime utimes futimesat utimensat setxattr lsetxattr fsetxattr removexattr
lremovexattr fremovexattr execve execveat connect bind sendmsg sendmmsg
""")
EPERM = words("""
ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise bpf perf_event_open
mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount open_tree mount_setattr
setns unshare name_to_handle_at open_by_handle_at keyctl add_key request_key fanotify_init
memfd_secret userfaultfd uselib modify_ldt ioperm iopl acct quotactl swapon swapoff init_module
finit_module delete_module kexec_load kexec_file_load reboot clock_settime clock_adjtime
settimeofday adjtimex syslog
""")
ENOSYS = words("clone3 io_uring_setup io_uring_enter io_uring_register mq_open mq_unlink")
#: Since Linux 5.1 a call has one number on every architecture; libseccomp may not know these.
NEWER = {
    "setxattrat": 463,
    "removexattrat": 466,
    "open_tree_attr": 467,
    "file_getattr": 468,
    "file_setattr": 469,
    "one that is not there yet": 600,
}
#: What only older architectures have.
ABSENT_ON_AARCH64 = set(
    words("""open creat mkdir mknod symlink link unlink rmdir rename chmod chown lchown utime utimes
    futimesat uselib modify_ldt ioperm iopl""")
)
CLONE_NEW = (0x20000, 0x2000000, 0x4000000, 0x8000000, 0x10000000, 0x20000000, 0x40000000)


@cache
def programs(arch: str, confined: bool) -> tuple[bytes, bytes]:
    """Return both programs for an architecture."""
    token = ARCHITECTURES[arch]
    return (
        syscalls.refusals(network=confined, arch=token),
        syscalls.allow_list(confined=confined, arch=token),
    )


def number(arch: str, name: str) -> int:
    """Return a call's number there; negative where it has none."""
    return int(seccomp.resolve_syscall(ARCHITECTURES[arch], name))


@pytest.fixture(name="confined", params=[False, True], ids=["full", "landlock"])
def _confined(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(name="arch", params=sorted(ARCHITECTURES))
def _arch(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def answer(
    arch: str, call: int | str, arguments: Sequence[int] = (), confined: bool = False
) -> int:
    """Return what the kernel makes of both answers: the stricter action is the lower value."""
    which = number(arch, call) if isinstance(call, str) else call
    answers = [bpf.run(each, arch, which, arguments) for each in programs(arch, confined)]
    return min(answers, key=lambda value: value & _ACTION)


def named(arch: str, names: Sequence[str]) -> list[str]:
    """Return those that the architecture has; the others are the ones known not to be there."""
    there = [name for name in names if number(arch, name) >= 0]
    absent = set(names) - set(there)
    assert absent == (set(names) & ABSENT_ON_AARCH64 if arch == "aarch64" else set())
    return there


def test_what_names_a_file_a_program_or_an_address_is_asked_about(
    arch: str, confined: bool
) -> None:
    found = {name: answer(arch, name, confined=confined) for name in named(arch, MEDIATED)}
    assert {name: value for name, value in found.items() if value != NOTIFY} == {}


def test_an_open_that_only_looks_is_not_asked_about_and_any_other_is(arch: str) -> None:
    look = 0o10000000
    assert answer(arch, "openat", (0, 0, look)) == ALLOW
    # the kernel takes an int: what is above it changes nothing
    assert answer(arch, "openat", (0, 0, look << 12)) == NOTIFY
    assert answer(arch, "openat", (0, 0, 0o2102)) == NOTIFY


def test_a_send_to_an_address_is_asked_about(arch: str) -> None:
    assert answer(arch, "sendto", (3, 1, 1, 0, 0)) == ALLOW
    for address in (1, 1 << 32, 0x7FFF0000):
        assert answer(arch, "sendto", (3, 1, 1, 0, address)) == NOTIFY


def test_what_nobody_may_do_is_refused(arch: str, confined: bool) -> None:
    wanted = ERRNO | errno.EPERM
    found = {name: answer(arch, name, confined=confined) for name in named(arch, EPERM)}
    assert {name: value for name, value in found.items() if value != wanted} == {}


def test_what_libraries_do_without_and_what_is_unknown_is_not_there(
    arch: str, confined: bool
) -> None:
    calls = {name: number(arch, name) for name in ENOSYS} | NEWER
    wanted = ERRNO | errno.ENOSYS
    found = {name: answer(arch, call, confined=confined) for name, call in calls.items()}
    assert {name: value for name, value in found.items() if value != wanted} == {}


def test_no_number_at_all_is_free_but_those_that_the_table_names(arch: str, confined: bool) -> None:
    names = {*syscalls.ALLOWED, *syscalls.IPC_CALLS, *syscalls.NOTIFIED, *syscalls.REFUSED}
    known = {number(arch, name) for name in names} | {number(arch, "socket")}
    wanted = ERRNO | errno.ENOSYS
    others = [call for call in range(1024) if call not in known]
    assert len(others) > 500
    assert {call for call in others if answer(arch, call, confined=confined) != wanted} == set()


def test_a_new_namespace_is_refused_and_a_thread_is_not(arch: str) -> None:
    for flag in CLONE_NEW:
        assert answer(arch, "clone", (flag | 17,)) == ERRNO | errno.EPERM
        # bits above those that the kernel reads do not hide it
        assert answer(arch, "clone", (flag | 1 << 40,)) == ERRNO | errno.EPERM
    assert answer(arch, "clone", (0x3D0F00,)) == ALLOW


@pytest.mark.parametrize(
    "family", [*range(2, 64), 1 << 6, 1 << 31], ids=lambda family: f"family{family}"
)
def test_only_four_families_of_sockets_may_be_had(arch: str, family: int) -> None:
    free = family in (2, 10, 16)
    got = answer(arch, "socket", (family, 2, 0))
    assert (got == ALLOW) == free
    if not free:
        assert got & _ACTION == ERRNO


def test_raw_packets_and_multipath_are_refused(arch: str) -> None:
    for arguments in ((2, 3, 1), (2, 3, 255), (10, 3, 58), (2, 1, 262), (16, 3, 9), (2, 5, 132)):
        assert answer(arch, "socket", arguments) & _ACTION == ERRNO
    assert answer(arch, "socket", (2, 1, 6)) == ALLOW
    assert answer(arch, "socket", (16, 3, 0)) == ALLOW
    # SCTP without being named, where it is loaded
    for family, kind in ((2, 5), (10, 5), (2, 5 | 0o2004000), (2 | 1 << 32, 5 | 1 << 32)):
        got = answer(arch, "socket", (family, kind, 0))
        assert got == ERRNO | errno.ESOCKTNOSUPPORT, (family, kind)
    assert answer(arch, "socket", (1, 5, 0)) == ALLOW


def test_internet_datagrams_are_asked_about_where_the_network_is_the_hosts(
    arch: str, confined: bool
) -> None:
    for family in (2, 10):
        for kind in (2, 2 | 0o2004000, 2 | 1 << 32):
            wanted = NOTIFY if confined else ALLOW
            assert answer(arch, "socket", (family, kind, 17), confined=confined) == wanted
        assert answer(arch, "socket", (family, 1, 6), confined=confined) == ALLOW
    assert answer(arch, "socket", (1, 2, 0), confined=confined) == ALLOW


@pytest.mark.parametrize("family", [2, 10])
@pytest.mark.parametrize("kind", [1, 2])
def test_internet_sockets_are_of_no_protocol_that_is_not_known(
    arch: str, family: int, kind: int
) -> None:
    free = {
        protocol
        for protocol in (*range(512), 6 | 1 << 31, 1 << 31)
        if answer(arch, "socket", (family, kind, protocol)) == ALLOW
    }
    assert free == {0, 6, 17}
    # the kernel takes an int: what is above it changes nothing
    assert answer(arch, "socket", (family, kind, 256 | 1 << 32)) & _ACTION == ERRNO
    # those that kernels may have are as on one that has them not: programs then take another
    for protocol in (262, 132, 256, 261):
        got = answer(arch, "socket", (family, kind, protocol))
        assert got == ERRNO | errno.EPROTONOSUPPORT, protocol


def test_the_limit_of_cores_is_not_set_and_can_be_asked_for(arch: str, confined: bool) -> None:
    for core in (4, 4 | 1 << 32):
        assert answer(arch, "setrlimit", (core, 1), confined) == ERRNO
        for pointer in (1, 1 << 32):
            assert answer(arch, "prlimit64", (0, core, pointer, 0), confined) == ERRNO
            for before in (1, 1 << 32):  # nobody would write it there
                got = answer(arch, "prlimit64", (0, core, pointer, before), confined)
                assert got == ERRNO | errno.EPERM
        assert answer(arch, "prlimit64", (0, core, 0, 1), confined) == ALLOW
    assert answer(arch, "setrlimit", (7, 1), confined) == ALLOW
    assert answer(arch, "prlimit64", (0, 7, 1, 0), confined) == ALLOW


def test_dangerous_arguments_are_refused_and_the_same_calls_are_not(arch: str) -> None:
    for call, arguments in (
        ("ioctl", (0, 0x5412)),
        ("ioctl", (0, 0x5412 | 1 << 32)),
        ("ioctl", (0, 0x541C)),
        ("ioctl", (0, 0x5423)),
        ("ioctl", (0, 0x40086602)),
        ("ioctl", (0, 0x401C5820)),
        ("ioctl", (0, 0x8901)),
        ("ioctl", (0, 0x8902)),
        # a group as owner; what is above an int changes nothing
        ("fcntl", (0, 8, 0xFFFFFFFF)),
        ("fcntl", (0, 8 | 1 << 32, 1 << 31)),
        ("fcntl", (0, 8, -2 & (1 << 64) - 1)),
        ("fcntl", (0, 15, 1)),
        ("prctl", (35,)),
        ("prctl", (0x59616D61,)),
        ("seccomp", (1, 8)),
        ("personality", (0x0400000,)),
    ):
        assert answer(arch, call, arguments) == ERRNO | errno.EPERM, (call, arguments)
    for command in (0, 4, 8, 16, 38, 1030, 1033, 1038):
        assert answer(arch, "fcntl", (0, command)) == ALLOW, command
    assert answer(arch, "fcntl", (0, 8, 1 << 32 | 1234)) == ALLOW
    assert answer(arch, "fcntl", (0, 4, 0o4002)) == ALLOW
    # O_ASYNC is asked about
    for call, arguments in (
        ("fcntl", (0, 4, 0o20000)),
        ("fcntl", (0, 4, 1 << 32 | 0o24002)),
        ("ioctl", (0, 0x5452)),
        ("ioctl", (0, 0x5452 | 1 << 32)),
    ):
        assert answer(arch, call, arguments) == NOTIFY, (call, arguments)
    # SAFETY: not to be had by a command that the kernel takes for another than the filter
    assert answer(arch, "fcntl", (0, 4 | 1 << 32, 0o20000)) == ERRNO | errno.EINVAL
    for number in range(256):
        if number not in (0x12, 0x1C, 0x23, 0x0C, 0x52):
            assert answer(arch, "ioctl", (0, 0x5400 | number)) == ALLOW, number
    # a lease, what Linux 6.19 adds for directories, and what is not there yet
    for command in (1024, 1039, 1040, 4096, 1040 | 1 << 32):
        assert answer(arch, "fcntl", (0, command)) == ERRNO | errno.EINVAL, command
    # FIDEDUPERANGE
    assert answer(arch, "ioctl", (0, 0xC0189436)) == ERRNO | errno.ENOSYS
    for call, arguments in (
        ("ioctl", (0, 0x5401)),
        ("prctl", (15,)),
        ("seccomp", (1, 0)),
        ("personality", (0xFFFFFFFF,)),
    ):
        assert answer(arch, call, arguments) == ALLOW, (call, arguments)


def test_others_processes_are_asked_about_where_they_can_be_named(arch: str) -> None:
    for call, arguments in (
        ("prlimit64", (7,)),
        ("sched_setaffinity", (7,)),
        ("sched_setparam", (7,)),
        ("sched_setscheduler", (7,)),
        ("sched_setattr", (7,)),
        ("setpriority", (0, 7)),
        ("ioprio_set", (1, 7)),
        ("setpgid", (0, 7)),
    ):
        assert answer(arch, call, arguments, confined=True) == NOTIFY
        assert answer(arch, call, confined=True) == ALLOW or call == "ioprio_set"
        assert answer(arch, call, arguments) == ALLOW


@pytest.mark.parametrize("foreign", ["i386", "arm", "x86_64", "aarch64"])
def test_a_call_of_another_architecture_kills(arch: str, foreign: str) -> None:
    answers = [bpf.run(each, foreign, 1) & _ACTION for each in programs(arch, False)]
    assert (min(answers) == KILL) == (foreign != arch)


@pytest.mark.skipif("x86_64" not in ARCHITECTURES, reason="no machine of that kind has x32")
def test_the_x32_bit_is_refused() -> None:
    calls = [number("x86_64", name) | 0x40000000 for name in ("openat", "execve", "read")]
    got = {answer("x86_64", call) & _ACTION for call in calls}
    assert got == {KILL}
