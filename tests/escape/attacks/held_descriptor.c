/* Open anew, by /proc/self/fd, what is held as a place only (O_PATH), while the number stands for
 * something else that is open: in the table of the thread group's leader, or by turns. */
#include "attack.h"
#include <sched.h>

static const char *name;
static int place, null, number;

static int again(void) {
    char path[64], data[100];
    snprintf(path, sizeof path, "/proc/thread-self/fd/%d", number);
    int fd = open(path, O_RDWR | O_NONBLOCK | O_NOCTTY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, data, sizeof data);
    close(fd);
    if (got > 0) printf("%.*s\n", (int)got, data);
    fflush(stdout);
    return got > 0;
}

/* A thread with descriptors of its own. */
static int apart(void *done) {
    dup2(place, number);
    again();
    *(volatile int *)done = 1;
    while (pause()) continue;
    return 0;
}

static void *turn(void *unused) {
    for (;;) {
        dup2(place, number);
        dup2(null, number);
    }
    return unused;
}

int main(int argc, char **argv) {
    static char stack[1 << 16], terminal[4096];
    const char *way = argc > 4 ? argv[4] : "table";
    name = "secrets/pipe";
    if (!strcmp(way, "terminal")) {
        int fd = open("terminal", O_RDONLY);
        if (fd < 0 || read(fd, terminal, sizeof terminal - 1) <= 0) return 1;
        name = terminal;
    }
    place = open(name, O_PATH);
    null = open("/dev/null", O_RDWR);
    number = dup(null);
    if (place < 0 || number < 0) return 1;
    if (strcmp(way, "race")) {
        volatile int done = 0;
        clone(apart, stack + sizeof stack, CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD,
              (void *)&done);
        while (!done) sched_yield();
        _exit(0);
    }
    pthread_t thread;
    if (pthread_create(&thread, 0, turn, 0)) return 1;
    for (int tries = 0; tries < 3000 && !again(); tries++)
        ;
    _exit(0);
}
