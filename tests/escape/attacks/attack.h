/* What the attacks share.  Each is run in a directory of its own, with three arguments: a directory
 * outside the workspace, the number of wins to stop at (0: none), the number of tries (0: none).
 * A theft is proven by the stolen words on stdout, damage by what the test finds on disk; only what
 * leaves neither is said with a line WON. */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

/* Print what can be read: the loot. */
static inline void loot(int fd) {
    char data[256];
    ssize_t got = fd < 0 ? -1 : read(fd, data, sizeof data);
    if (got > 0) fwrite(data, 1, (size_t)got, stdout);
    fflush(stdout);
}

static inline int won(int done) {
    if (done) puts("WON");
    fflush(stdout);
    return 0;
}

/* Does the file hold what is to be stolen?  It is closed. */
static inline int stolen(int fd) {
    char data[5];
    int whole = read(fd, data, 5) == 5;
    close(fd);
    return whole && !memcmp(data, "token", 5);
}

/* A race: `try_once` is 1 for a win, while a second thread does `change` for ever (0: none).
 * Bounded by counts, never by time. */
static inline int race(char **argv, void *(*change)(void *), int (*try_once)(void)) {
    pthread_t thread;
    if (change && pthread_create(&thread, 0, change, 0)) return 1;
    long goal = atol(argv[2]), most = atol(argv[3]), wins = 0, tries = 0;
    while ((!goal || wins < goal) && (!most || tries < most)) {
        wins += try_once();
        tries++;
    }
    printf("WINS %ld TRIES %ld\n", wins, tries);
    fflush(stdout);
    _exit(0);
}
