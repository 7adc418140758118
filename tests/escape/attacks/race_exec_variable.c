/* A variable that has other code run in a program is put in after the environment was judged. */
#include "exec.h"
static volatile char variable[] = "XD_AUDIT=bin/audit.so";
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
    return wrote(in_threads(flip, run), "other code");
}
int main(int argc, char **argv) {
    (void)argc;
    return race_to_run(argv, 0, try_once);
}
