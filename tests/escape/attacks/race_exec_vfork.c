/* A vfork child, whose memory is its parent's, runs a program while a thread rewrites an argument. */
#include "exec.h"
static volatile char word[] = "a";
static void *flip(void *unused) {
    for (;;) word[0] ^= 'a' ^ 'd';
    return unused;
}
static int try_once(void) {
    pid_t child = fork();
    if (!child) {
        pthread_t thread;
        char *words[] = {"x", (char *)word, 0};
        dup2(out[1], 1);
        pthread_create(&thread, 0, flip, 0);
        if (!vfork()) {
            execve("bin/xa", words, environ);
            _exit(0);
        }
        wait(0);
        _exit(0);
    }
    return wrote(child, "denied argument");
}
int main(int argc, char **argv) {
    (void)argc;
    return race_to_run(argv, 0, try_once);
}
