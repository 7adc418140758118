/* Reach into another session of the same user: its agent, or what supervises it. */
#include "attack.h"
#include <poll.h>
#include <sys/ptrace.h>
#include <sys/uio.h>
static const char *name;
static int is(const char *other) { return !strcmp(name, other); }
int main(int argc, char **argv) {
    char data[64] = "", path[64];
    long start = 0;
    int pid = 0, pidfd;
    FILE *file = fopen("pid", "r");
    (void)argc;
    name = argv[4];
    if (!file || fscanf(file, "%d %lx", &pid, &start) != 2) return 1;
    if (is("kill")) {
        struct pollfd end = {(int)syscall(SYS_pidfd_open, pid, 0), POLLIN, 0};
        if (!kill(pid, SIGKILL) || !syscall(SYS_pidfd_send_signal, end.fd, SIGKILL, 0, 0))
            poll(&end, 1, -1); /* it ends when it comes to its turn */
    }
    if (is("trace")) {
        won(!ptrace(PTRACE_SEIZE, pid, 0, 0) || !ptrace(PTRACE_ATTACH, pid, 0, 0));
    }
    if (is("copy")) {
        struct iovec here = {data, 4}, there = {(void *)start, 4};
        won(process_vm_readv(pid, &here, 1, &there, 1, 0) == 4);
    }
    if (is("memory")) {
        snprintf(path, sizeof path, "/proc/%d/mem", pid);
        pidfd = open(path, O_RDWR);
        won(pidfd >= 0 && pread(pidfd, data, 4, start) == 4);
    }
    if (is("descriptor")) {
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        won(syscall(SYS_pidfd_getfd, pidfd, 0, 0) >= 0);
    }
    return 0;
}
