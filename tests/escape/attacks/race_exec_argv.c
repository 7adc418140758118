/* A thread that is not the leader runs a program while another rewrites an argument. */
#include "attack.h"
static volatile char word[] = "a";
static int out[2];
static void *flip(void *unused) {
    for (;;) word[0] ^= 'a' ^ 'd';
    return unused;
}
static void *run(void *unused) {
    char *words[] = {"x", (char *)word, 0};
    execve("bin/xa", words, environ);
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
    return read(out[0], data, sizeof data) > 0 && strstr(data, "denied argument");
}
int main(int argc, char **argv) {
    (void)argc;
    if (pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    return race(argv, try_once);
}
