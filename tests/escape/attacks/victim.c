/* Do something to a process that is not of the session; what, is the fourth argument. */
#include "attack.h"
#include <sched.h>
#include <sys/resource.h>
static const char *name;
static int is(const char *other) { return !strcmp(name, other); }
int main(int argc, char **argv) {
    FILE *file = fopen("pid", "r");
    int pid = 0, pidfd, pipes[2];
    unsigned char data[128] = {0};
    struct rlimit none = {7, 7};
    struct sched_param idle = {0};
    cpu_set_t first;
    (void)argc;
    name = argv[4];
    if (!file || fscanf(file, "%d", &pid) != 1) return 1;
    if (is("kill")) kill(pid, SIGKILL);
    if (is("kill-group")) kill(-pid, SIGKILL);
    if (is("tkill")) syscall(SYS_tkill, pid, SIGKILL);
    if (is("tgkill")) syscall(SYS_tgkill, pid, pid, SIGKILL);
    if (is("sigqueue")) {
        ((int *)data)[2] = -1; /* si_code SI_QUEUE */
        syscall(SYS_rt_sigqueueinfo, pid, SIGKILL, data);
        syscall(SYS_rt_tgsigqueueinfo, pid, pid, SIGKILL, data);
    }
    if (is("pidfd")) {
        pidfd = (int)syscall(SYS_pidfd_open, pid, 0);
        syscall(SYS_pidfd_send_signal, pidfd, SIGKILL, 0, 0);
    }
    if (is("sigio") && !pipe(pipes)) {
        /* the kernel sends it for us, when the pipe has something to read */
        fcntl(pipes[0], F_SETOWN, pid);
        fcntl(pipes[0], F_SETFL, O_ASYNC | O_NONBLOCK);
        fcntl(pipes[0], F_SETSIG, SIGKILL == 9 ? SIGUSR1 : 0);
        if (write(pipes[1], "x", 1) != 1) return 1;
    }
    if (is("prlimit")) syscall(SYS_prlimit64, pid, RLIMIT_NOFILE, &none, 0);
    if (is("priority")) setpriority(PRIO_PROCESS, (id_t)pid, 19);
    if (is("io-priority")) syscall(SYS_ioprio_set, 1, pid, 3 << 13);
    if (is("scheduler")) sched_setscheduler(pid, SCHED_IDLE, &idle);
    if (is("affinity")) {
        CPU_ZERO(&first);
        CPU_SET(1, &first);
        sched_setaffinity(pid, sizeof first, &first);
    }
    if (is("robust-list")) {
        void *head;
        size_t size;
        won(!syscall(SYS_get_robust_list, pid, &head, &size));
    }
    if (is("move-pages")) {
        void *page = (void *)0x1000;
        int status;
        won(syscall(SYS_move_pages, pid, 1, &page, 0, &status, 0) >= 0);
    }
    return 0;
}
