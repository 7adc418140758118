/* A variable that has other code run in a program is put in after the environment was judged. */
#include "attack.h"
static volatile char variable[] = "XD_AUDIT=bin/audit.so";
static int out[2];
static void *flip(void *unused) {
    for (;;) variable[0] ^= 'X' ^ 'L';
    return unused;
}
static void *run(void *unused) {
    char *words[] = {"true", 0}, *all[] = {"PINNED=yes", (char *)variable, 0};
    execve("/usr/bin/true", words, all);
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
    return read(out[0], data, sizeof data) > 0 && strstr(data, "other code");
}
int main(int argc, char **argv) {
    (void)argc;
    if (pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    return race(argv, try_once);
}
