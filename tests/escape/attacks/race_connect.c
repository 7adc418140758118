/* A second thread rewrites one byte of the socket's path while connect is being judged. */
#include "attack.h"
static volatile struct sockaddr_un address = {.sun_family = AF_UNIX, .sun_path = "door-a"};
static int sock;
static void *flip(void *unused) {
    for (;;) address.sun_path[5] ^= 'a' ^ 'b';
    return unused;
}
static int try_once(void) {
    struct sockaddr_un peer = {0};
    socklen_t size = sizeof peer;
    if (connect(sock, (struct sockaddr *)&address, sizeof address)) return 0;
    return !getpeername(sock, (struct sockaddr *)&peer, &size) && strstr(peer.sun_path, "door-b");
}
int main(int argc, char **argv) {
    (void)argc;
    sock = socket(AF_UNIX, SOCK_DGRAM, 0);
    return race(argv, flip, try_once);
}
