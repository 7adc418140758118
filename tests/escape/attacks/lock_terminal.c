/* Keep everybody else from opening the person's terminal, for as long as it is open. */
#include "attack.h"
int main(void) {
    int tty = open("/dev/tty", O_RDWR);
    if (tty < 0) return 1;
    ioctl(tty, TIOCEXCL);
    won(open("/dev/tty", O_RDWR) < 0 && errno == EBUSY);
    return ioctl(tty, TIOCNXCL);
}
