/* A second thread changes the directory that a relative path starts from. */
#include "attack.h"
static void *move(void *here) {
    char allowed[4200], denied[4200];
    snprintf(allowed, sizeof allowed, "%s/secretz", (char *)here);
    snprintf(denied, sizeof denied, "%s/secrets", (char *)here);
    for (;;)
        if (chdir(allowed) || chdir(denied)) _exit(9);
    return 0;
}
static int try_once(void) {
    char data[8] = "";
    int fd = open("key", O_RDONLY);
    if (fd < 0) return 0;
    ssize_t got = read(fd, data, 5);
    close(fd);
    return got == 5 && !memcmp(data, "token", 5);
}
int main(int argc, char **argv) {
    static char here[4096];
    pthread_t thread;
    (void)argc;
    if (!getcwd(here, sizeof here)) return 1;
    pthread_create(&thread, 0, move, here);
    return race(argv, try_once);
}
