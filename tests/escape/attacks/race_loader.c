/* A loader opens the program by its name after that was judged: a link leads elsewhere by then. */
#include "exec.h"
static const char *loaders[] = {"/lib64/ld-linux-x86-64.so.2", "/lib/ld-linux-aarch64.so.1"};
static char loader[4096], bad[4096];
static void *flip(void *unused) {
    for (int even = 0;; even = !even) {
        if (symlink(even ? "/usr/bin/true" : bad, "src/next")) continue;
        rename("src/next", "src/link");
    }
    return unused;
}
static int try_once(void) {
    char *words[] = {loader, "src/link", 0};
    pid_t child = vfork();
    if (!child) {
        dup2(out[1], 1);
        execve(loader, words, environ);
        _exit(0);
    }
    return wrote(child, "denied program");
}
int main(int argc, char **argv) {
    (void)argc;
    for (int each = 0; each < 2; each++)
        if (realpath(loaders[each], loader)) break;
    if (!realpath("bin/xd-dynamic", bad)) return 1;
    return race_to_run(argv, flip, try_once);
}
