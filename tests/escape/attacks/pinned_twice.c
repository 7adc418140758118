/* Start a program with a pinned variable twice: most programs take the first, shells the last. */
#include "attack.h"
int main(int argc, char **argv) {
    char *shell[] = {"sh", "-c", "echo $PINNED", 0}, *print[] = {"printenv", "PINNED", 0};
    char *last[] = {"PINNED=yes", "PINNED=WON", 0}, *first[] = {"PINNED=WON", "PINNED=yes", 0};
    (void)argc;
    if (!strcmp(argv[4], "last")) execve("/bin/sh", shell, last);
    if (!strcmp(argv[4], "first")) execve("/usr/bin/printenv", print, first);
    return 0;
}
