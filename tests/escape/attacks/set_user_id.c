/* Run a set-user-ID copy of this program that belongs to somebody else. */
#include "attack.h"
int main(int count, char **given) {
    char *words[] = {"other", 0};
    (void)given;
    if (geteuid() != getuid()) return won(1);
    if (count == 1) return 0; /* it is the copy, and still nobody else */
    execve("bin/other", words, environ);
    return 0;
}
