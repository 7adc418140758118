/* A known, mixed set of attempts; every step is independent of the others' results. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dirent.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

static void touch(const char *path, int flags) {
    int fd = open(path, flags, 0644);
    if (fd >= 0) close(fd);
}

static void numbered(const char *format, int number, int flags) {
    char path[64];
    snprintf(path, sizeof path, format, number);
    touch(path, flags);
}

static void *thread(void *unused) {
    for (int i = 0; i < 50; i++) touch("src/app.txt", O_RDONLY);
    return unused;
}

static void run(const char *program, char *const argv[]) {
    pid_t child = fork();
    if (child == 0) {
        execv(program, argv);
        _exit(127);
    }
    waitpid(child, NULL, 0);
}

static void reach(int port) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(port)};
    to.sin_addr.s_addr = htonl(0xc0000201); /* 192.0.2.1, which is nobody's (RFC 5737) */
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    connect(fd, (struct sockaddr *)&to, sizeof to);
    close(fd);
}

static void reach_path(const char *path) {
    struct sockaddr_un to = {.sun_family = AF_UNIX};
    strncpy(to.sun_path, path, sizeof to.sun_path - 1);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&to, sizeof to);
    close(fd);
}

static void files(void) {
    char old[64], new[64];
    for (int i = 0; i < 30; i++) touch("src/app.txt", O_RDONLY);
    for (int i = 0; i < 20; i++) numbered("src/new%d", i, O_WRONLY | O_CREAT | O_EXCL);
    for (int i = 0; i < 7; i++) touch("src/app.txt", O_WRONLY | O_APPEND);
    for (int i = 0; i < 5; i++) {
        snprintf(old, sizeof old, "src/new%d", i);
        snprintf(new, sizeof new, "src/moved%d", i);
        rename(old, new);
    }
    for (int i = 5; i < 9; i++) {
        snprintf(old, sizeof old, "src/new%d", i);
        unlink(old);
    }
    touch("src/new9", O_WRONLY | O_TRUNC);
    touch("src/new9", O_RDWR);
    touch("src/new9", O_WRONLY | O_CREAT | O_EXCL); /* it is there: EEXIST */
    touch("src/absent", O_RDONLY);
    touch("src/absent/deeper", O_RDONLY);
    closedir(opendir("src"));
    mkdir("src/dir", 0755);
    rmdir("src/dir");
    symlink("app.txt", "src/symlink");
    touch("src/symlink", O_RDONLY);
    link("src/app.txt", "src/hardlink");
    chmod("src/app.txt", 0600);
    truncate("src/app.txt", 1);
    mkfifo("src/fifo", 0600);
}

static void refused(void) {
    touch("secrets/key", O_RDONLY);
    touch("src/../secrets/key", O_RDONLY);
    touch("src/to-secret", O_RDONLY); /* a symbolic link that leads there */
    touch("secrets/key", O_WRONLY);
    touch("secrets/new", O_WRONLY | O_CREAT | O_EXCL);
    touch("/etc/shadow", O_RDONLY);
    mkdir("elsewhere", 0755);
    rename("src/new10", "secrets/taken");
    chmod("secrets/key", 0666);
    unlink("secrets/key");
}

int main(void) {
    pthread_t second;
    files();
    refused();
    pthread_create(&second, NULL, thread, NULL);
    for (int child = 0; child < 3; child++) {
        if (fork() == 0) {
            for (int i = 0; i < 40; i++) touch("src/app.txt", O_RDONLY);
            for (int i = 0; i < 10; i++)
                numbered("src/child%d", child * 10 + i, O_WRONLY | O_CREAT | O_EXCL);
            _exit(0);
        }
    }
    pthread_join(second, NULL);
    while (wait(NULL) > 0) continue;
    run("/usr/bin/true", (char *[]){"true", "really", NULL});
    run("bin/tool", (char *[]){"bin/tool", NULL});
    run("bin/absent", (char *[]){"bin/absent", NULL});
    run("/usr/bin/id", (char *[]){"id", NULL});
    run("/bin/sh", (char *[]){"sh", "-c", "/usr/bin/id", NULL});
    reach(9);
    reach(10);
    reach_path("src/socket");
    return 7;
}
