/* Run a set-user-ID copy of this program that belongs to somebody else. */
#include "attack.h"
int main(void) {
    char *words[] = {"other", 0}, *none[] = {0};
    if (geteuid() != getuid()) return won(1);
    execve("bin/other", words, none);
    return 0;
}
