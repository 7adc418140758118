/*
 * The floor under a mediated open: what the kernel's own path costs, in C, with nothing added.
 *
 *   floor PATH COUNT         a child opens PATH under a supervisor that reads the path, opens it
 *                            and injects the descriptor: no verdict, no record
 *   floor --bare PATH COUNT  the same loop without a supervisor of its own (to be run by another)
 *
 * For every line on standard input the loop opens and closes PATH COUNT times and prints the
 * nanoseconds that took.  It ends when standard input does.
 *
 * seccomp_unotify(2).  SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP is Linux 6.6; older kernels go without.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#ifndef SECCOMP_IOCTL_NOTIF_SET_FLAGS
#define SECCOMP_IOCTL_NOTIF_SET_FLAGS SECCOMP_IOW(4, __u64)
#endif
#ifndef SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP
#define SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP (1UL << 0)
#endif
#ifndef SECCOMP_ADDFD_FLAG_SEND
#define SECCOMP_ADDFD_FLAG_SEND (1UL << 1)
#endif

static void fail(const char *what)
{
	fprintf(stderr, "floor: %s: %s\n", what, strerror(errno));
	_exit(125);
}

static long long now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec * 1000000000LL + at.tv_nsec;
}

/* The workload.  openat by number: what is measured is one system call, whatever the libc. */
static int work(const char *path, long count)
{
	char line[64];

	while (fgets(line, sizeof line, stdin)) {
		long long start = now();

		for (long i = 0; i < count; i++) {
			int fd = (int)syscall(SYS_openat, AT_FDCWD, path, O_RDONLY | O_CLOEXEC, 0);

			if (fd < 0)
				fail(path);
			close(fd);
		}
		printf("%lld\n", now() - start);
		fflush(stdout);
	}
	return 0;
}

/* Have openat notify, everything else pass.  Returns the listener. */
static int install(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_openat, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_USER_NOTIF),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = { sizeof code / sizeof *code, code };

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
		fail("no_new_privs");
	return (int)syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER,
			    SECCOMP_FILTER_FLAG_NEW_LISTENER, &program);
}

__attribute__((noreturn)) static void supervise(int listener, pid_t child)
{
	char name[32], path[PATH_MAX];
	int memory;

	ioctl(listener, SECCOMP_IOCTL_NOTIF_SET_FLAGS, SECCOMP_USER_NOTIF_FD_SYNC_WAKE_UP);
	snprintf(name, sizeof name, "/proc/%d/mem", child);
	memory = open(name, O_RDONLY | O_CLOEXEC);
	if (memory < 0)
		fail(name);
	/* The end is the child's: SIGCHLD. */
	for (;;) {
		struct seccomp_notif ask = { 0 };
		struct seccomp_notif_addfd give = { .flags = SECCOMP_ADDFD_FLAG_SEND };
		int fd;

		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_RECV, &ask)) {
			if (errno == EINTR || errno == ENOENT)
				continue;
			fail("receive");
		}
		if (pread(memory, path, sizeof path, (off_t)ask.data.args[1]) <= 0)
			fail("read the path");
		fd = open(path, (int)ask.data.args[2] | O_CLOEXEC);
		if (fd < 0)
			fail(path);
		give.id = ask.id;
		give.srcfd = (unsigned)fd;
		give.newfd_flags = (unsigned)ask.data.args[2] & O_CLOEXEC;
		if (ioctl(listener, SECCOMP_IOCTL_NOTIF_ADDFD, &give) < 0)
			fail("inject");
		close(fd);
	}
}

/* Take the child's listener, whose number it sends through a pipe. */
static int take(int number_from, pid_t child)
{
	int number, process, listener;

	if (read(number_from, &number, sizeof number) != sizeof number) {
		errno = EPIPE;
		fail("the child's listener");
	}
	process = (int)syscall(SYS_pidfd_open, child, 0);
	listener = (int)syscall(SYS_pidfd_getfd, process, number, 0);
	if (listener < 0)
		fail("pidfd_getfd");
	close(process);
	return listener;
}

static void child_is_gone(int signal)
{
	(void)signal;
	_exit(0);
}

int main(int argc, char **argv)
{
	int to_parent[2];
	pid_t child;

	if (argc == 4 && !strcmp(argv[1], "--bare"))
		return work(argv[2], atol(argv[3]));
	if (argc != 3) {
		fprintf(stderr, "usage: floor [--bare] PATH COUNT\n");
		return 2;
	}
	if (pipe(to_parent))
		fail("pipe");
	signal(SIGCHLD, child_is_gone);
	child = fork();
	if (child < 0)
		fail("fork");
	if (child == 0) {
		int listener = install();

		if (listener < 0)
			fail("seccomp");
		if (write(to_parent[1], &listener, sizeof listener) != sizeof listener)
			fail("pipe");
		/* The listener stays open here: the parent takes its copy when it comes to it. */
		return work(argv[1], atol(argv[2]));
	}
	close(to_parent[1]);
	supervise(take(to_parent[0], child), child);
}
