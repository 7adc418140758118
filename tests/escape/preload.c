/* What LD_PRELOAD has the loader put beside a program, and run before it (ld.so(8)). */
#include <unistd.h>
__attribute__((constructor)) static void before(void) {
    if (write(1, "WON\n", 4) != 4) _exit(1);
}
