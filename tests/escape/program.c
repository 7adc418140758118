/* bin/xa, which the policy allows but with the argument d, and bin/xd, which it denies. */
#include <stdio.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv) {
#ifdef DENIED
    return write(1, "a denied program has run\n", 25) != 25;
#else
    if (argc > 1 && !strcmp(argv[1], "d")) return write(1, "a denied argument was taken\n", 28) != 28;
    return write(1, "fine\n", 5) != 5;
#endif
}
