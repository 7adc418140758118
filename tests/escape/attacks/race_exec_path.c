/* A vfork child shares the memory: another thread rewrites the program's path while it is judged. */
#include "exec.h"
static volatile char path[] = "bin/xa";
static void *flip(void *unused) {
    for (;;) path[5] ^= 'a' ^ 'd';
    return unused;
}
static int try_once(void) {
    char *words[] = {"x", 0};
    pid_t child = vfork();
    if (!child) {
        dup2(out[1], 1);
        execve((char *)path, words, environ);
        _exit(0);
    }
    return wrote(child, "denied program");
}
int main(int argc, char **argv) {
    (void)argc;
    return race_to_run(argv, flip, try_once);
}
