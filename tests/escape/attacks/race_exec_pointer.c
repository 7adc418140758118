/* The pointer to a variable is changed, to one that the policy forbids, after it was judged. */
#include "exec.h"
static char *volatile all[] = {"PINNED=yes", "HARMLESS=1", 0};
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
    return wrote(in_threads(flip, run), "1");
}
int main(int argc, char **argv) {
    (void)argc;
    return race_to_run(argv, 0, try_once);
}
