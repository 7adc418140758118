/* A second thread changes the directory that a relative path starts from. */
#include "attack.h"
static char here[4096];
static void *move(void *unused) {
    char allowed[4200], denied[4200];
    snprintf(allowed, sizeof allowed, "%s/secretz", here);
    snprintf(denied, sizeof denied, "%s/secrets", here);
    for (;;)
        if (chdir(allowed) || chdir(denied)) _exit(9);
    return unused;
}
static int try_once(void) {
    return stolen(open("key", O_RDONLY));
}
int main(int argc, char **argv) {
    (void)argc;
    if (!getcwd(here, sizeof here)) return 1;
    return race(argv, move, try_once);
}
