/* What the races for a program share: what it writes is read through a pipe. */
#include "attack.h"

static int out[2];

/* Wait for a child: is this in what it has written? */
static inline int wrote(pid_t child, const char *words) {
    char data[64] = "";
    waitpid(child, 0, 0);
    return read(out[0], data, sizeof data - 1) > 0 && strstr(data, words);
}

/* Start a child where one thread runs a program, and another changes what it is given. */
static inline pid_t in_threads(void *(*change)(void *), void *(*run)(void *)) {
    pid_t child = fork();
    if (!child) {
        pthread_t threads[2];
        dup2(out[1], 1);
        pthread_create(&threads[0], 0, change, 0);
        pthread_create(&threads[1], 0, run, 0);
        for (;;) pause();
    }
    return child;
}

static inline int race_to_run(char **argv, void *(*change)(void *), int (*try_once)(void)) {
    if (pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    return race(argv, change, try_once);
}
