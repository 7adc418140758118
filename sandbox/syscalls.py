"""The seccomp programs: which calls pass, which are asked about, which are refused.

Two programs are stacked.  The first refuses by argument and lets the rest pass;
the second is the allow list by name, whose notifications the supervisor answers.
The kernel takes the strictest answer, so a call must get through both.  What
neither names is ENOSYS, so that libraries fall back.  See seccomp(2).
"""

from __future__ import annotations

import errno
import os

import pyseccomp as seccomp

from safeclaw.sandbox import linux
from safeclaw.sandbox.filters import FORK_CALLS, PROCESS_CALLS, SOCKET_CALLS


def _names(text: str) -> tuple[str, ...]:
    return tuple(text.split())


#: Answered by the supervisor, by path or descriptor.
FILE_CALLS = _names(
    "open openat openat2 creat truncate mkdir mkdirat mknod mknodat symlink symlinkat link linkat "
    "unlink unlinkat rmdir rename renameat renameat2 chmod fchmodat fchmodat2 fchmod chown lchown "
    "fchownat fchown utime utimes futimesat utimensat setxattr lsetxattr fsetxattr removexattr "
    "lremovexattr fremovexattr"
)
PROGRAM_CALLS = ("execve", "execveat")
NETWORK_CALLS = ("connect", "bind", "listen", "sendmsg", "sendmmsg")
#: Answered by the supervisor as reads: they tell of a file what stat(2) does not.
LOOK_CALLS = _names(
    "inotify_add_watch getxattr lgetxattr fgetxattr listxattr llistxattr flistxattr"
)
#: Answered by the supervisor, because an ordinary user's namespace would answer otherwise.
IDENTITY_CALLS = _names("setuid setgid setreuid setregid setresuid setresgid")
#: Answered by the supervisor where they set O_ASYNC.
ASYNC_CALLS = ("fcntl", "ioctl")
NOTIFIED = (
    *(*FILE_CALLS, *LOOK_CALLS, *PROGRAM_CALLS, *NETWORK_CALLS, *IDENTITY_CALLS, *ASYNC_CALLS),
    "sendto",
)

#: The calls whose flags are an argument, and which one.
_OPENS = {"open": 1, "openat": 2}
#: Those that are notified with some arguments only.
_BY_ARGUMENT = (*_OPENS, *ASYNC_CALLS, "sendto")

#: No name of a file, no other process, no device: free.
ALLOWED = _names(
    # descriptors that are already open
    "read write readv writev pread64 pwrite64 preadv pwritev preadv2 pwritev2 lseek close "
    "close_range dup dup2 dup3 fsync fdatasync ftruncate fallocate flock fadvise64 "
    "readahead sync_file_range sync syncfs copy_file_range sendfile splice tee vmsplice getdents "
    "getdents64 pipe pipe2 poll ppoll select pselect6 epoll_create epoll_create1 epoll_ctl "
    "epoll_wait epoll_pwait epoll_pwait2 epoll_ctl_old eventfd eventfd2 signalfd signalfd4 "
    "timerfd_create timerfd_settime timerfd_gettime inotify_init inotify_init1 "
    "inotify_rm_watch memfd_create cachestat "
    # names in the view may be looked at, not opened
    "stat lstat fstat newfstatat statx access faccessat faccessat2 readlink readlinkat getcwd "
    "chdir fchdir statfs fstatfs umask "
    # memory
    "mmap munmap mremap mprotect pkey_alloc pkey_free pkey_mprotect msync mincore madvise brk "
    "mlock mlock2 munlock mlockall munlockall mbind get_mempolicy set_mempolicy membarrier rseq "
    # processes and threads of its own namespace
    "fork vfork clone exit exit_group wait4 waitid getpid getppid gettid getpgid getpgrp setpgid "
    "getsid setsid set_tid_address set_robust_list get_robust_list futex futex_waitv futex_wake "
    "futex_wait futex_requeue kill tkill tgkill rt_sigaction rt_sigprocmask rt_sigpending "
    "rt_sigtimedwait rt_sigsuspend rt_sigreturn rt_sigqueueinfo rt_tgsigqueueinfo sigaltstack "
    "pause restart_syscall pidfd_open pidfd_send_signal prctl arch_prctl seccomp personality "
    "getpriority setpriority sched_yield sched_getaffinity sched_setaffinity sched_getparam "
    "sched_setparam sched_getscheduler sched_setscheduler sched_get_priority_max "
    "sched_get_priority_min sched_rr_get_interval sched_getattr sched_setattr ioprio_get "
    "ioprio_set getrusage times prlimit64 getrlimit setrlimit getcpu sysinfo uname alarm "
    "setitimer getitimer timer_create timer_settime timer_gettime timer_getoverrun timer_delete "
    # identity: no capability is left, so these can only lower
    "getuid geteuid getgid getegid getresuid getresgid getgroups setfsuid setfsgid "
    "setgroups capget capset "
    # time and randomness
    "time gettimeofday clock_gettime clock_getres nanosleep clock_nanosleep getrandom "
    # sockets that exist already; families are judged in the first program
    "socket socketpair getsockname getpeername getsockopt setsockopt shutdown accept accept4 "
    "recvfrom recvmsg recvmmsg landlock_create_ruleset landlock_add_rule "
    "landlock_restrict_self"
)

#: System V IPC: free where the IPC namespace is the session's own, and missing where it is not.
IPC_CALLS = _names(
    "shmget shmat shmdt shmctl semget semop semtimedop semctl msgget msgsnd msgrcv msgctl"
)

#: Refused with EPERM, so that a person sees a refusal and not a missing call.
REFUSED = _names(
    "ptrace process_vm_readv process_vm_writev pidfd_getfd kcmp process_madvise bpf "
    "perf_event_open mount umount2 pivot_root chroot fsopen fsconfig fsmount fspick move_mount "
    "open_tree mount_setattr setns unshare name_to_handle_at open_by_handle_at keyctl add_key "
    "request_key fanotify_init fanotify_mark memfd_secret userfaultfd uselib modify_ldt ioperm "
    "iopl acct quotactl quotactl_fd swapon swapoff init_module finit_module delete_module "
    "kexec_load kexec_file_load reboot clock_settime clock_adjtime settimeofday adjtimex syslog "
    "sethostname setdomainname vhangup nfsservctl lookup_dcookie"
)

AF_UNIX, AF_INET, AF_INET6, AF_NETLINK = 1, 2, 10, 16
_AF_HIGHEST = 64
_LOW32 = 0xFFFFFFFF
#: The last keeps everybody else from opening a terminal, after the agent has ended, too.
TIOCSTI, TIOCLINUX, TIOCSETD, TIOCEXCL = 0x5412, 0x541C, 0x5423, 0x540C
#: What changes a file through a descriptor that may only read it (linux/fs.h, ext4, fscrypt.h):
#: SETFLAGS, FSSETXATTR, SETVERSION by two names, ENABLE_VERITY, SET_ENCRYPTION_POLICY.
FILE_IOCTLS = (0x40086602, 0x401C5820, 0x40087602, 0x40086604, 0x40806685, 0x800C6613)
F_SETFL, F_SETOWN, F_SETOWN_EX, F_SETLEASE = 4, 8, 15, 1024
#: Ways to have the kernel signal a whole process group about a file: FIOSETOWN, SIOCSPGRP.
_OWNER_IOCTLS = (0x8901, 0x8902)
#: O_ASYNC as a request of its own.
FIOASYNC = 0x5452
_SIGN = 1 << 31
RLIMIT_CORE = 4
#: The last command of fcntl(2) that is known: F_SET_FILE_RW_HINT (linux/fcntl.h of 6.18).
_F_LAST = 1038
PR_SET_MM, PR_SET_PTRACER = 35, 0x59616D61
IPPROTO_MPTCP = 262
#: ICMP, ICMPv6 and raw packets: as for anybody without the capability.
_PRIVILEGED_PROTOCOLS = tuple((number, errno.EPERM) for number in (1, 58, 255))
#: SCTP, UDP-Lite, DCCP, L2TP, SMC and QUIC, which no rule could name: as on a kernel without them.
_UNKNOWN_PROTOCOLS = tuple(
    (number, errno.EPROTONOSUPPORT) for number in (132, 136, 33, 115, 256, 261)
)
#: Those for which the first program has an errno of their own.
_REFUSED_PROTOCOLS = (
    IPPROTO_MPTCP,
    *(number for number, _ in (*_PRIVILEGED_PROTOCOLS, *_UNKNOWN_PROTOCOLS)),
)
#: TCP and UDP.
_PROTOCOLS = (6, 17)
#: socket(2)'s types; above them are flags.
_STREAM, _DATAGRAM, _SEQPACKET, _TYPE = 1, 2, 5, 0xF
_PRIO_PGRP, _PRIO_USER = 1, 2
_IOPRIO_WHO_PGRP, _IOPRIO_WHO_USER = 2, 3
#: Socket options by level that send packets another way than to the address that was judged:
#: IP_OPTIONS, IP_UNICAST_IF; IPV6_2292RTHDR, IPV6_2292PKTOPTIONS, IPV6_FLOWLABEL_MGR (a label has
#: a routing header, where the kernel has type 2), IPV6_PKTINFO, IPV6_RTHDRDSTOPTS, IPV6_RTHDR,
#: IPV6_UNICAST_IF; SO_BINDTODEVICE, SO_BINDTOIFINDEX.  And by which they come from an address that
#: is none of this host's: IP_FREEBIND, IPV6_FREEBIND.
_ROUTES = ((0, (4, 15, 50)), (41, (5, 6, 32, 50, 55, 57, 76, 78)), (1, (25, 62)))
#: Options that join a group of the host's network: IP_ADD_MEMBERSHIP,
#: IP_ADD_SOURCE_MEMBERSHIP, MCAST_JOIN_GROUP, MCAST_JOIN_SOURCE_GROUP, MCAST_MSFILTER,
#: IP_MSFILTER, and IPv6's ADD_MEMBERSHIP and JOIN_ANYCAST.
_GROUPS = ((0, (35, 39, 41, 42, 46, 48)), (41, (20, 27, 42, 46, 48)))


#: Requests of ioctl(2) by type: terminals and what asks about any descriptor (T), sockets.
_IOCTLS_T, _IOCTLS_SOCKET = 0x5400, 0x8900
#: And by number: FIBMAP, FIGETBSZ, RNDGETENTCNT; FICLONE, FICLONERANGE, which want a descriptor for
#: writing and one for reading; FIEMAP, and what asks for a file's flags, version, project, verity,
#: file system's name and UUID.  Not FIDEDUPERANGE: of a file that may only be written it tells
#: whether it holds what another does.
_IOCTLS = (
    *(0x1, 0x2, 0x80045200, 0x40049409, 0x4020940D, 0xC020660B),
    *(0x80086601, 0x80087601, 0x80086603, 0x801C581F, 0xC0046686, 0x81009431, 0x80111500),
)


def _export(program: seccomp.SyscallFilter) -> bytes:
    fd = os.memfd_create("seccomp", os.MFD_CLOEXEC)
    with os.fdopen(fd, "w+b") as out:
        program.export_bpf(out)
        out.seek(0)
        return out.read()


def _number(name: str) -> int | None:
    try:
        number = seccomp.resolve_syscall(seccomp.Arch.NATIVE, name)
    except (ValueError, OSError):
        return None
    return number if number >= 0 else None


def notified_numbers(*, confined: bool = False) -> dict[int, str]:
    """Map each notified call's number on this machine to its name."""
    asked = (*NOTIFIED, *((*PROCESS_CALLS, *FORK_CALLS, *SOCKET_CALLS) if confined else ()))
    return {number: name for name in asked if (number := _number(name)) is not None}


def _program(action: int, arch: int) -> seccomp.SyscallFilter:
    """Return an empty program for one architecture; a call of any other kills."""
    program = seccomp.SyscallFilter(action)
    if arch not in (seccomp.Arch.NATIVE, seccomp.system_arch()):
        program.add_arch(arch)
        program.remove_arch(seccomp.Arch.NATIVE)
    return program


def refusals(*, network: bool = False, arch: int = seccomp.Arch.NATIVE) -> bytes:
    """Return the first program: refusals by argument; everything else passes.

    ``network`` says that the agent may come to hold sockets of the host's network.

    SAFETY: the kernel uses only the low 32 bits of an int argument, so each
    comparison masks; comparing all 64 would let ``cmd | 1 << 32`` through.
    """
    program = _program(seccomp.ALLOW, arch)
    eperm = seccomp.ERRNO(errno.EPERM)

    def refuse(name: str, index: int, value: int, action: int = eperm, mask: int = _LOW32) -> None:
        number = _number(name)
        if number is not None:
            program.add_rule(
                action, number, seccomp.Arg(index, seccomp.MASKED_EQ, mask, value & mask)
            )

    for flag in (
        linux.CLONE_NEWNS,
        linux.CLONE_NEWCGROUP,
        linux.CLONE_NEWUTS,
        linux.CLONE_NEWIPC,
        linux.CLONE_NEWUSER,
        linux.CLONE_NEWPID,
        linux.CLONE_NEWNET,
    ):
        refuse("clone", 0, flag, mask=flag)
    for request in (TIOCSTI, TIOCLINUX, TIOCSETD, TIOCEXCL, *FILE_IOCTLS, *_OWNER_IOCTLS):
        refuse("ioctl", 1, request)
    # SAFETY: the supervisor, and what else a script has started, is of the agent's process group.
    # Landlock's scope does not keep such signals from a group before Linux 6.18.40 and 6.12.101
    # (CVE-2026-72183), and no PID namespace does.
    refuse("fcntl", 1, F_SETOWN_EX)
    program.add_rule(
        eperm,
        "fcntl",
        seccomp.Arg(1, seccomp.MASKED_EQ, _LOW32, F_SETOWN),
        seccomp.Arg(2, seccomp.MASKED_EQ, _SIGN, _SIGN),
    )
    # a lease would hold up whoever opens the file next: the supervisor, or a program of the host
    refuse("fcntl", 1, F_SETLEASE, seccomp.ERRNO(errno.EINVAL))
    # and so would what later kernels add (delegations, Linux 6.19), which is as on this one
    program.add_rule(seccomp.ERRNO(errno.EINVAL), "fcntl", seccomp.Arg(1, seccomp.GT, _F_LAST))
    for option in (PR_SET_MM, PR_SET_PTRACER):
        refuse("prctl", 0, option)
    # It stays what it is: see limits.hold_core.  Answered as done, because gpg(1) and ssh-agent(1)
    # end where they cannot have no core.
    done = seccomp.ERRNO(0)
    refuse("setrlimit", 0, RLIMIT_CORE, done)
    # What asks for the limit before, too, would take what stands in its memory for that.
    for asks, action in ((seccomp.EQ, done), (seccomp.NE, eperm)):
        program.add_rule(
            action,
            "prlimit64",
            seccomp.Arg(1, seccomp.MASKED_EQ, _LOW32, RLIMIT_CORE),
            seccomp.Arg(2, seccomp.NE, 0),
            seccomp.Arg(3, asks, 0),
        )
    # a whole group or user: the supervisor is of the agent's group, wherever its PID namespace is
    for which in (_PRIO_PGRP, _PRIO_USER):
        refuse("setpriority", 0, which)
    for which in (_IOPRIO_WHO_PGRP, _IOPRIO_WHO_USER):
        refuse("ioprio_set", 0, which)
    refuse("seccomp", 1, linux.SECCOMP_FILTER_FLAG_NEW_LISTENER, mask=1 << 3)
    program.add_rule(eperm, "personality", seccomp.Arg(0, seccomp.NE, _LOW32))
    unsupported = seccomp.ERRNO(errno.EAFNOSUPPORT)
    for call in ("socket", "socketpair"):
        for family in range(_AF_HIGHEST):
            if family not in (AF_UNIX, AF_INET, AF_INET6, AF_NETLINK):
                refuse(call, 0, family, unsupported)
        for bit in range(6, 32):
            refuse(call, 0, 1 << bit, unsupported, mask=1 << bit)
        for kind in (0, 3, 4, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15):
            # netlink's SOCK_RAW (3) is the usual way to ask for NETLINK_ROUTE
            for family in (AF_UNIX, AF_INET, AF_INET6, *((AF_NETLINK,) if kind != 3 else ())):
                program.add_rule(
                    eperm,
                    call,
                    seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, family),
                    seccomp.Arg(1, seccomp.MASKED_EQ, 0xF, kind),
                )
        # SAFETY: of the internet's it would be SCTP, where somebody has loaded that.
        for family in (AF_INET, AF_INET6):
            program.add_rule(
                seccomp.ERRNO(errno.ESOCKTNOSUPPORT),
                call,
                seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, family),
                seccomp.Arg(1, seccomp.MASKED_EQ, _TYPE, _SEQPACKET),
            )
        for bit in range(5):
            # netlink: only protocol 0, NETLINK_ROUTE
            program.add_rule(
                eperm,
                call,
                seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, AF_NETLINK),
                seccomp.Arg(2, seccomp.MASKED_EQ, 1 << bit, 1 << bit),
            )
        refuse(call, 2, IPPROTO_MPTCP, seccomp.ERRNO(errno.EPROTONOSUPPORT))
    for level, options in (*_ROUTES, *(_GROUPS if network else ())):
        for option in options:
            program.add_rule(
                eperm,
                "setsockopt",
                seccomp.Arg(1, seccomp.MASKED_EQ, _LOW32, level),
                seccomp.Arg(2, seccomp.MASKED_EQ, _LOW32, option),
            )
    for call in ("socket", "socketpair"):
        for family in (AF_INET, AF_INET6):
            for protocol, action in (*_PRIVILEGED_PROTOCOLS, *_UNKNOWN_PROTOCOLS):
                program.add_rule(
                    seccomp.ERRNO(action),
                    call,
                    seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, family),
                    seccomp.Arg(2, seccomp.MASKED_EQ, _LOW32, protocol),
                )
    return _export(program)


def allow_list(*, confined: bool = False, arch: int = seccomp.Arch.NATIVE) -> bytes:
    """Return the second program: by name.

    ``confined`` says that the agent shares the host's PID and IPC namespaces.
    """
    program = _program(seccomp.ERRNO(errno.ENOSYS), arch)
    asked = [name for name in NOTIFIED if name not in _BY_ARGUMENT]
    free = [name for name in ALLOWED if name not in asked and name != "socket"]
    if confined:
        free = [name for name in free if name not in (*PROCESS_CALLS, *FORK_CALLS)]
        asked += FORK_CALLS
        for name, index in PROCESS_CALLS.items():
            if (number := _number(name)) is not None:
                program.add_rule(seccomp.ALLOW, number, seccomp.Arg(index, seccomp.EQ, 0))
                program.add_rule(seccomp.NOTIFY, number, seccomp.Arg(index, seccomp.NE, 0))
    else:
        free += IPC_CALLS
    for names, action in (
        (free, seccomp.ALLOW),
        (REFUSED, seccomp.ERRNO(errno.EPERM)),
        (asked, seccomp.NOTIFY),
    ):
        for name in names:
            if (number := _number(name)) is not None:
                program.add_rule(action, number)
    # An O_PATH descriptor reads and writes nothing: it gives what stat, readlink and chdir give,
    # and whatever is done through it later is judged by where it leads.  It could not be handed
    # over either (seccomp_unotify(2): EBADF).
    for name, index in _OPENS.items():
        if (number := _number(name)) is not None:
            look = seccomp.Arg(index, seccomp.MASKED_EQ, linux.O_PATH, linux.O_PATH)
            other = seccomp.Arg(index, seccomp.MASKED_EQ, linux.O_PATH, 0)
            program.add_rule(seccomp.ALLOW, number, look)
            program.add_rule(seccomp.NOTIFY, number, other)
    # SAFETY: a file system may have requests that change a file, or make one, through a descriptor
    # that may only read: whatever is not known to do no such thing is refused.
    program.add_rule(
        seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFF00, _IOCTLS_SOCKET)
    )
    # all of its type but FIOASYNC: what differs in one of the eight bits of its number
    for bit in (1 << position for position in range(8)):
        other = seccomp.Arg(1, seccomp.MASKED_EQ, 0xFF00 | bit, _IOCTLS_T | ~FIOASYNC & bit)
        program.add_rule(seccomp.ALLOW, "ioctl", other)
    program.add_rule(seccomp.NOTIFY, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, 0xFFFF, FIOASYNC))
    # a command with more than 32 bits is refused by the first program
    program.add_rule(seccomp.ALLOW, "fcntl", seccomp.Arg(1, seccomp.NE, F_SETFL))
    for flag, action in ((0, seccomp.ALLOW), (os.O_ASYNC, seccomp.NOTIFY)):
        program.add_rule(
            action,
            "fcntl",
            seccomp.Arg(1, seccomp.MASKED_EQ, _LOW32, F_SETFL),
            seccomp.Arg(2, seccomp.MASKED_EQ, os.O_ASYNC, flag),
        )
    for request in _IOCTLS:
        program.add_rule(seccomp.ALLOW, "ioctl", seccomp.Arg(1, seccomp.MASKED_EQ, _LOW32, request))
    # sendto with no address is send(2) on a socket whose peer was judged at connect
    program.add_rule(seccomp.ALLOW, "sendto", seccomp.Arg(4, seccomp.EQ, 0))
    program.add_rule(seccomp.NOTIFY, "sendto", seccomp.Arg(4, seccomp.NE, 0))
    # a socket lives in the agent's own namespace, and reaches nothing until it is used
    for family in (AF_UNIX, AF_NETLINK):
        program.add_rule(seccomp.ALLOW, "socket", seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, family))
    # SAFETY: a rule names tcp or udp, and Landlock knows TCP alone: what else a kernel offers
    # would be judged as what it is not.
    for family in (AF_INET, AF_INET6):
        for protocol in (0, *_PROTOCOLS, *_REFUSED_PROTOCOLS):
            for kind, action in (
                (_STREAM, seccomp.ALLOW),
                (_DATAGRAM, seccomp.NOTIFY if confined else seccomp.ALLOW),
            ):
                program.add_rule(
                    action,
                    "socket",
                    seccomp.Arg(0, seccomp.MASKED_EQ, _LOW32, family),
                    seccomp.Arg(1, seccomp.MASKED_EQ, _TYPE, kind),
                    seccomp.Arg(2, seccomp.MASKED_EQ, _LOW32, protocol),
                )
    return _export(program)
