/* One call that has no business inside; its name is the fourth argument. */
#include "attack.h"
#include <linux/filter.h>
#include <linux/perf_event.h>
#include <linux/seccomp.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/personality.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
static const char *name;
static int is(const char *other) { return !strcmp(name, other); }
static int sock(int family, int type, int protocol) { return socket(family, type, protocol) >= 0; }
static int on_child(void) {
    static char word[8];
    struct iovec here = {word, 8}, there = {word, 8};
    pid_t child = fork();
    int done = 0, pidfd;
    if (!child)
        for (;;) pause();
    pidfd = (int)syscall(SYS_pidfd_open, child, 0);
    if (is("ptrace")) done = !ptrace(PTRACE_ATTACH, child, 0, 0);
    if (is("process_vm_readv")) done = process_vm_readv(child, &here, 1, &there, 1, 0) == 8;
    if (is("process_vm_writev")) done = process_vm_writev(child, &here, 1, &there, 1, 0) == 8;
    if (is("pidfd_getfd")) done = syscall(SYS_pidfd_getfd, pidfd, 1, 0) >= 0;
    if (is("kcmp")) done = syscall(SYS_kcmp, getpid(), child, 2, 0, 0) >= 0;
    kill(child, SIGKILL);
    return done;
}
int main(int argc, char **argv) {
    char ring[256] = {0};
    struct sock_filter allow[] = {BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)};
    struct sock_fprog filter = {1, allow};
    (void)argc;
    name = argv[4];
    if (is("ptrace") || is("process_vm_readv") || is("process_vm_writev") || is("pidfd_getfd") || is("kcmp"))
        return won(on_child());
    if (is("traceme")) return won(!ptrace(PTRACE_TRACEME, 0, 0, 0));
    if (is("unshare")) return won(!unshare(CLONE_NEWUSER));
    if (is("unshare-files")) return won(!unshare(CLONE_FILES));
    if (is("clone-newuser")) {
        long child = syscall(SYS_clone, CLONE_NEWUSER | SIGCHLD, 0, 0, 0, 0);
        if (!child) _exit(0);
        return won(child > 0);
    }
    if (is("clone3")) {
        unsigned long args[11] = {CLONE_NEWUSER, 0, 0, 0, SIGCHLD};
        long child = syscall(SYS_clone3, args, sizeof args);
        if (!child) _exit(0);
        return won(child > 0);
    }
    if (is("io_uring_setup")) return won(syscall(SYS_io_uring_setup, 4, ring) >= 0);
    if (is("keyctl")) return won(syscall(SYS_keyctl, 0, -3, 1) > 0);
    if (is("add_key")) return won(syscall(SYS_add_key, "user", "x", "y", 1, -2) > 0);
    if (is("request_key")) {
        syscall(SYS_request_key, "user", "not-there", 0, 0);
        return won(errno == ENOKEY);
    }
    if (is("name_to_handle_at")) {
        unsigned handle[40] = {128};
        return won(!syscall(SYS_name_to_handle_at, AT_FDCWD, "src", handle, ring, 0));
    }
    if (is("userfaultfd")) return won(syscall(SYS_userfaultfd, 1 /* USER_MODE_ONLY */) >= 0);
    if (is("personality")) return won(personality(ADDR_NO_RANDOMIZE) >= 0);
#ifdef SYS_modify_ldt
    if (is("modify_ldt")) return won(syscall(SYS_modify_ldt, 0, ring, 16) >= 0);
#endif
    if (is("fanotify_init")) return won(syscall(SYS_fanotify_init, 0x200, 0) >= 0);
    if (is("seccomp-listener")) {
        prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
        return won(syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_NEW_LISTENER, &filter) >= 0);
    }
    if (is("set-mm")) {
        return won(prctl(PR_SET_MM, PR_SET_MM_MAP_SIZE, ring, 0, 0) == 0);
    }
    if (is("set-ptracer")) {
        int failed = prctl(PR_SET_PTRACER, getppid(), 0, 0, 0);
        return won(!failed || errno == EINVAL);
    }
    if (is("chroot")) return won(!chroot("src"));
    if (is("fsopen")) return won(syscall(SYS_fsopen, "tmpfs", 0) >= 0);
    if (is("open_tree")) return won(syscall(SYS_open_tree, AT_FDCWD, "src", 0) >= 0);
    if (is("setns")) return won(!setns(open("/proc/self/ns/uts", O_RDONLY), 0));
    if (is("bpf")) return won(syscall(SYS_bpf, 0, (unsigned[]){2, 4, 4, 1, 0, 0, 0, 0, 0, 0, 0, 0}, 48) >= 0);
    if (is("mknod-device")) return won(!mknod("src/device", S_IFCHR | 0600, 0x103));
    if (is("raw-socket")) return won(sock(2, 3, 255));
    if (is("packet-socket")) return won(sock(17, 3, 0));
    if (is("mptcp-socket")) return won(sock(2, 1, 262));
    if (is("netlink-audit")) return won(sock(16, 3, 9) || sock(16, 3, 15));
    if (is("vsock")) return won(sock(40, 1, 0));
    if (is("whiteout")) {
        struct stat left;
        close(open("src/f", O_WRONLY | O_CREAT, 0600));
        syscall(SYS_renameat2, AT_FDCWD, "src/f", AT_FDCWD, "src/g", 4 /* RENAME_WHITEOUT */);
        return won(!lstat("src/f", &left) && S_ISCHR(left.st_mode));
    }
    if (is("flow-label")) {
        /* struct in6_flowlabel_req: what it may hold besides is IPV6_RTHDR (linux/in6.h) */
        unsigned char wanted[32] = {[15] = 1, [21] = 1, [22] = 1, [24] = 60, [26] = 60};
        return won(!setsockopt(socket(10, SOCK_DGRAM, 0), 41, 32, wanted, sizeof wanted));
    }
    if (is("high-bits-ioctl")) return won(!syscall(SYS_ioctl, (long)open("frozen/f", O_RDONLY), 1UL << 32 | 0x40086602UL, &(int){0x40}));
    return 2;
}
