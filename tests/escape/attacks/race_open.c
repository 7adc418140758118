/* A second thread rewrites one byte of the path while open is being judged. */
#include "attack.h"
static volatile char path[] = "secretz/key";
static void *flip(void *unused) {
    for (;;) path[6] ^= 's' ^ 'z';
    return unused;
}
static int try_once(void) {
    return stolen(open((char *)path, O_RDONLY));
}
int main(int argc, char **argv) {
    (void)argc;
    return race(argv, flip, try_once);
}
