/* A thread that is not the leader runs a program while another rewrites an argument. */
#include "exec.h"
static volatile char word[] = "a";
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
    return wrote(in_threads(flip, run), "denied argument");
}
int main(int argc, char **argv) {
    (void)argc;
    return race_to_run(argv, 0, try_once);
}
