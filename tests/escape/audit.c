/* What LD_AUDIT has the loader run before the program itself (rtld-audit(7)). */
#include <unistd.h>
unsigned la_version(unsigned version) {
    if (write(1, "other code has WON\n", 19) != 19) return 0;
    return version;
}
