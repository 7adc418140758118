/* Kill the process group, which the supervisor belongs to and a PID namespace does not confine. */
#include "attack.h"
int main(void) {
    kill(0, SIGKILL);
    kill(-1, SIGKILL);
    return 0;
}
