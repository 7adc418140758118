/*
 * Random system calls with random arguments, from inside the walls.
 *
 *   fuzzer SEED ROUNDS SECONDS PATH...
 *
 * Works in the current directory, on names of its own and on PATH... (what it must not touch).
 * A round is SECONDS of workers: each makes mediated calls with paths and structures that are
 * right, wrong, torn at a page's end, not there, or rewritten by a second thread meanwhile;
 * now and then any call at all.  Workers are interrupted by signals, and killed in the middle
 * of what they do.  When none is left, "round N: M calls" is printed, and the FIFO `go` is
 * opened and read: whoever looks at the supervisor from outside does it then.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <poll.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <netinet/in.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 6
#define PAGE 4096UL
#define ARENA (64 * PAGE)
#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static uint64_t state;
static char *arena;		/* readable and writable, rewritten by the racer */
static char *last_page;		/* one page, with nothing mapped behind it */
static char *hole;		/* PROT_NONE */
static char **forbidden;
static int forbidden_count;
static unsigned long *calls;	/* shared by all workers */

static uint64_t rnd(void)
{
	/* xorshift64* */
	state ^= state >> 12;
	state ^= state << 25;
	state ^= state >> 27;
	return state * 2685821657736338717ULL;
}

static unsigned below(unsigned limit)
{
	return (rnd() >> 33) % limit;
}

static int once_in(unsigned n)
{
	return below(n) == 0;
}

static const char *const names[] = {
	"a", "b", "c", "dir", "dir/a", "dir/b", "link", "loop", "fifo", "socket", ".", "..", "", "/",
	"dir/", "a/", "dir/../a", "./././b", "dir/../../a", "//", "a\377\376\200", "\001\033[2J",
	"new\nline", "\302\240", "/proc/self/fd/0", "/proc/self/fd/1", "/proc/self/fd/5",
	"/proc/self/exe", "/proc/self/mem", "/proc/self/root/etc/passwd", "/proc/self/cwd/a",
	"/proc/thread-self/fd/3", "/proc/1/fd/0", "/proc/self/task", "/dev/fd/3", "/dev/stdin",
	"/dev/null", "/dev/zero", "/dev/tty", "/dev/ptmx", "/etc/passwd", "/etc/shadow", "/tmp",
	"/tmp/x", "/usr/bin/true", "/usr/bin/env", "/bin/sh", "script", "denied", "denied/key",
	"dir/denied", "/proc/sys/kernel/core_pattern", "/proc/self/fd", "/proc/self/fdinfo/1",
	"/proc/self/environ", "/lib64/ld-linux-x86-64.so.2",
};

/* A path: mostly one of ours, in the arena so that the racer may rewrite it. */
static uint64_t path(void)
{
	char *at = arena + below(ARENA - 2 * PATH_MAX);

	switch (below(24)) {
	case 0: return 0;
	case 1: return 1 + below(PAGE);
	case 2: return (uint64_t)hole + below(PAGE);
	case 3: return 0xffff800000000000ULL | rnd();
	case 4: return rnd();
	case 5: return ~0ULL - below(300);
	case 6: return (1ULL << 47) - 1 - below(300);
	case 7:			/* no NUL before the mapping ends */
		at = last_page + PAGE - 1 - below(300);
		memset(at, 'a', last_page + PAGE - at);
		return (uint64_t)at;
	case 8: {		/* longer than a path, a name, or just not */
		unsigned size = once_in(2) ? PATH_MAX - 2 + below(4) : 254 + below(4);

		memset(at, once_in(2) ? '/' : 'a', size);
		at[size] = 0;
		return (uint64_t)at;
	}
	case 9: {		/* deep */
		unsigned depth = below(1500), i;

		for (i = 0; i < depth; i++)
			memcpy(at + 2 * i, "./", 2);
		strcpy(at + 2 * i, "a");
		return (uint64_t)at;
	}
	case 10: {		/* bytes */
		unsigned size = below(64), i;

		for (i = 0; i < size; i++)
			at[i] = rnd();
		at[size] = 0;
		return (uint64_t)at;
	}
	case 11: case 12: case 13:
		strcpy(at, forbidden[below(forbidden_count)]);
		return (uint64_t)at;
	case 14: {		/* right at the end of the mapping */
		const char *name = names[below(COUNT(names))];

		at = last_page + PAGE - strlen(name) - 1;
		strcpy(at, name);
		return (uint64_t)at;
	}
	default:
		strcpy(at, names[below(COUNT(names))]);
		return (uint64_t)at;
	}
}

static uint64_t number(void)
{
	switch (below(12)) {
	case 0: return 0;
	case 1: return ~0ULL;
	case 2: return (uint32_t)-1;
	case 3: return INT_MAX;
	case 4: return (uint32_t)INT_MIN;
	case 5: return 1ULL << below(64);
	case 6: return rnd();
	case 7: return rnd() & 0xffffffff;
	default: return below(4096);
	}
}

static uint64_t directory(void)
{
	switch (below(6)) {
	case 0: return below(32);
	case 1: return number();
	case 2: return (uint64_t)(int64_t)AT_FDCWD;
	default: return (uint32_t)AT_FDCWD;
	}
}

/* A pointer to bytes: the arena with some of it random. */
static uint64_t bytes(void)
{
	char *at = arena + below(ARENA - PAGE);

	switch (below(10)) {
	case 0: return 0;
	case 1: return (uint64_t)hole;
	case 2: return rnd();
	case 3: return (uint64_t)(last_page + PAGE - 1 - below(64));
	default:
		for (unsigned i = 0; i < 8; i++)
			*(uint64_t *)(at + 8 * i) = number();
		return (uint64_t)at;
	}
}

static uint64_t sockaddr(uint64_t *length)
{
	char *at = arena + below(ARENA - PAGE);
	static const unsigned short families[] = { AF_UNIX, AF_INET, AF_INET6, AF_NETLINK, AF_UNSPEC };

	if (once_in(8)) {
		*length = number();
		return bytes();
	}
	memset(at, 0, 128);
	*(unsigned short *)at = once_in(10) ? rnd() : families[below(COUNT(families))];
	*length = 16;
	switch (*(unsigned short *)at) {
	case AF_UNIX:
		if (once_in(4))
			at[3] = 'x';	/* abstract */
		else
			strncpy(at + 2, names[below(COUNT(names))], 106);
		*length = once_in(4) ? below(130) : 2 + strlen(at + 2) + 1;
		break;
	case AF_INET:
		((struct sockaddr_in *)at)->sin_port = htons(once_in(3) ? 53 : below(65536));
		((struct sockaddr_in *)at)->sin_addr.s_addr = once_in(3) ? htonl(0x7f000001) : rnd();
		break;
	case AF_INET6:
		*length = 28;
		at[2] = rnd();
		at[23] = 1;
		if (once_in(3))
			memcpy(at + 18, "\xff\xff\x7f\0\0\1", 6);
		break;
	}
	if (once_in(8))
		*length = number();
	return (uint64_t)at;
}

static uint64_t msghdr(void)
{
	struct msghdr *at = (struct msghdr *)(arena + (below(ARENA - 2 * PAGE) & ~7UL));
	struct iovec *vector = (struct iovec *)((char *)at + 256);
	char *control = (char *)at + 512;
	uint64_t length;

	if (once_in(12))
		return bytes();
	memset(at, 0, 1024);
	if (once_in(2)) {
		at->msg_name = (void *)sockaddr(&length);
		at->msg_namelen = length;
	}
	at->msg_iov = vector;
	at->msg_iovlen = once_in(8) ? number() : below(4);
	for (unsigned i = 0; i < 4; i++) {
		vector[i].iov_base = (void *)bytes();
		vector[i].iov_len = once_in(4) ? number() : below(512);
	}
	if (once_in(3)) {
		struct cmsghdr *first = (struct cmsghdr *)control;

		first->cmsg_len = once_in(4) ? number() : CMSG_LEN(4 * (1 + below(4)));
		first->cmsg_level = once_in(3) ? (int)number() : SOL_SOCKET;
		first->cmsg_type = once_in(3) ? (int)number() : SCM_RIGHTS;
		for (unsigned i = 0; i < 4; i++)
			((int *)CMSG_DATA(first))[i] = once_in(3) ? (int)number() : (int)below(12);
		at->msg_control = control;
		at->msg_controllen = once_in(4) ? number() : CMSG_SPACE(16);
	}
	return (uint64_t)at;
}

static uint64_t vector(void)
{
	uint64_t *at = (uint64_t *)(arena + (below(ARENA - 2 * PAGE) & ~7UL));
	unsigned count = below(6);

	if (once_in(8))
		return bytes();
	for (unsigned i = 0; i < count; i++)
		at[i] = path();
	at[count] = once_in(16) ? rnd() : 0;
	return (uint64_t)at;
}

static uint64_t open_flags(void)
{
	static const int sets[] = {
		O_RDONLY, O_WRONLY, O_RDWR, O_CREAT | O_WRONLY, O_CREAT | O_EXCL | O_RDWR, O_PATH,
		O_DIRECTORY, O_NOFOLLOW, O_TMPFILE | O_RDWR, O_TRUNC | O_WRONLY, O_APPEND | O_WRONLY,
		O_RDONLY | O_NONBLOCK, O_RDONLY | O_CLOEXEC, O_ACCMODE, O_RDWR | O_NONBLOCK,
		O_DIRECT, O_NOATIME, O_ASYNC, O_SYNC, O_NOCTTY,
	};

	return once_in(8) ? number() : (uint64_t)(sets[below(COUNT(sets))] | sets[below(COUNT(sets))]);
}

static long go(long call, uint64_t a, uint64_t b, uint64_t c, uint64_t d, uint64_t e, uint64_t f)
{
	__atomic_add_fetch(calls, 1, __ATOMIC_RELAXED);
	return syscall(call, a, b, c, d, e, f);
}

static const long by_name[] = {	/* one path, then numbers */
	SYS_truncate,
#ifdef SYS_mkdir
	SYS_mkdir, SYS_mknod, SYS_rmdir, SYS_unlink, SYS_chmod, SYS_chown, SYS_lchown, SYS_creat,
	SYS_utime, SYS_utimes,
#endif
};
static const long at_name[] = {	/* directory, path, numbers */
	SYS_mkdirat, SYS_mknodat, SYS_unlinkat, SYS_fchmodat, SYS_fchownat, 452 /* fchmodat2 */,
	SYS_faccessat, SYS_readlinkat,
};
static const long by_descriptor[] = { SYS_fchmod, SYS_fchown, SYS_listen, SYS_fremovexattr };

/* Not for chance: they would end the fuzzer or its parent, or stop this worker for good. */
static int spared(long call)
{
	switch (call) {
	case SYS_exit: case SYS_exit_group: case SYS_kill: case SYS_tkill: case SYS_tgkill:
	case SYS_rt_sigqueueinfo: case SYS_rt_tgsigqueueinfo: case SYS_pidfd_send_signal:
	case SYS_clone: case SYS_rt_sigreturn: case SYS_munmap: case SYS_mremap: case SYS_mprotect:
	case SYS_brk: case SYS_mmap: case SYS_setrlimit: case SYS_prlimit64: case SYS_seccomp:
	case SYS_prctl: case SYS_rt_sigprocmask: case SYS_rt_sigaction: case SYS_sync:
	case SYS_shmat: case SYS_madvise: case SYS_mlockall: case SYS_landlock_restrict_self:
#ifdef SYS_fork
	case SYS_fork: case SYS_vfork: case SYS_arch_prctl:
#endif
		return 1;
	default:
		return 0;
	}
}

static void one_call(void)
{
	uint64_t length;
	uint64_t name;

	switch (below(26)) {
	case 0: case 1: case 2: case 3: case 4:
		go(SYS_openat, directory(), path(), open_flags(), number(), 0, 0);
		break;
	case 5: {
		uint64_t how = bytes();

		if (once_in(2) && how > PAGE && how < (1ULL << 46) && how >= (uint64_t)arena &&
		    how < (uint64_t)arena + ARENA - PAGE) {
			((uint64_t *)how)[0] = open_flags();
			((uint64_t *)how)[1] = once_in(3) ? number() : 0644;
			((uint64_t *)how)[2] = once_in(3) ? number() : 0;
		}
		go(SYS_openat2, directory(), path(), how, once_in(3) ? number() : 24, 0, 0);
		break;
	}
	case 6:
		go(by_name[below(COUNT(by_name))], path(), number(), number(), 0, 0, 0);
		break;
	case 7: case 8:
		go(at_name[below(COUNT(at_name))], directory(), path(), number(), number(), number(), 0);
		break;
	case 9:
		go(SYS_symlinkat, path(), directory(), path(), 0, 0, 0);
		break;
	case 10:
		go(SYS_linkat, directory(), path(), directory(), path(), once_in(2) ? number() : 0, 0);
		break;
	case 11: case 12:
		go(SYS_renameat2, directory(), path(), directory(), path(), once_in(2) ? number() : 0, 0);
		break;
	case 13:
		go(SYS_utimensat, directory(), path(), bytes(), number(), 0, 0);
		break;
	case 14:
		go(once_in(2) ? SYS_setxattr : SYS_lsetxattr, path(), path(), bytes(), number(), number(), 0);
		break;
	case 15:
		go(once_in(2) ? SYS_removexattr : SYS_lremovexattr, path(), path(), 0, 0, 0, 0);
		break;
	case 16:
		go(SYS_fsetxattr, number(), path(), bytes(), number(), number(), 0);
		break;
	case 17:
		go(by_descriptor[below(COUNT(by_descriptor))], below(32), number(), number(), 0, 0, 0);
		break;
	case 18:
		go(SYS_socket, once_in(4) ? number() : 1 + below(16), number(), once_in(2) ? number() : 0,
		   0, 0, 0);
		go(SYS_socket, once_in(2) ? AF_UNIX : AF_INET, 1 + below(2), 0, 0, 0, 0);
		break;
	case 19: case 20:
		name = sockaddr(&length);
		go(once_in(2) ? SYS_connect : SYS_bind, below(32), name, length, 0, 0, 0);
		break;
	case 21:
		name = sockaddr(&length);
		go(SYS_sendto, below(32), bytes(), once_in(4) ? number() : below(2048), number(), name,
		   length);
		break;
	case 22:
		go(SYS_sendmsg, below(32), msghdr(), once_in(2) ? number() : MSG_DONTWAIT, 0, 0, 0);
		break;
	case 23:
		go(SYS_sendmmsg, below(32), msghdr(), number(), number(), 0, 0);
		break;
	case 24:		/* by chance it is a program; a child runs it */
		if (once_in(4)) {
			pid_t child = vfork();

			if (child == 0) {
				go(SYS_execve, path(), vector(), vector(), 0, 0, 0);
				_exit(0);
			}
		} else {
			go(SYS_execveat, directory(), path(), vector(), vector(), number(), 0);
		}
		break;
	default: {
		long call = below(470);

		if (!spared(call))
			go(call, once_in(2) ? number() : below(32), once_in(2) ? bytes() : path(), number(),
			   bytes(), number(), number());
	}
	}
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
}

static void nothing(int signal_number)
{
	(void)signal_number;
}

/* Rewrites what the other thread has just filled in, until it is killed. */
static void *race(void *unused)
{
	uint64_t mine = state ^ 0x9e3779b97f4a7c15ULL;

	(void)unused;
	for (;;) {
		mine = mine * 6364136223846793005ULL + 1442695040888963407ULL;
		arena[(mine >> 20) % ARENA] = "a/.\0d"[(mine >> 50) % 5];
		if ((mine >> 60) == 0)
			sched_yield();
	}
	return NULL;
}

static void worker(uint64_t seed)
{
	struct sigaction act = { .sa_handler = nothing, .sa_flags = seed & 1 ? SA_RESTART : 0 };
	struct itimerval often = { { 0, 3000 }, { 0, 3000 } };
	struct rlimit small = { 64, 64 };
	pthread_t thread;

	state = seed | 1;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	setrlimit(RLIMIT_NOFILE, &small);
	small.rlim_cur = small.rlim_max = 1 << 20;
	setrlimit(RLIMIT_FSIZE, &small);
	signal(SIGXFSZ, SIG_IGN);
	signal(SIGPIPE, SIG_IGN);
	sigaction(SIGALRM, &act, NULL);
	if (seed & 2)
		setitimer(ITIMER_REAL, &often, NULL);
	if (seed & 4)
		pthread_create(&thread, NULL, race, NULL);
	for (;;) {
		one_call();
		if (once_in(64))
			go(SYS_close_range, 6, ~0U, 0, 0, 0, 0);
	}
}

static double now(void)
{
	struct timespec at;

	clock_gettime(CLOCK_MONOTONIC, &at);
	return at.tv_sec + at.tv_nsec / 1e9;
}

static pid_t start(uint64_t seed)
{
	pid_t pid = fork();

	if (pid == 0)
		worker(seed);
	return pid;
}

static void stop(pid_t pid)
{
	if (pid > 0) {
		kill(pid, SIGKILL);
		waitpid(pid, NULL, 0);
	}
}

/* End what the workers started, and what that left behind: all of it becomes ours. */
static void end_children(void)
{
	char text[PAGE];

	do {
		ssize_t size;
		int fd;

		snprintf(text, sizeof(text), "/proc/self/task/%d/children", getpid());
		fd = open(text, O_RDONLY);
		size = fd < 0 ? -1 : read(fd, text, sizeof(text) - 1);
		if (size < 0) {
			perror("fuzzer: children");
			_exit(6);
		}
		close(fd);
		text[size] = 0;
		for (char *word = strtok(text, " "); word; word = strtok(NULL, " "))
			kill(atoi(word), SIGKILL);
	} while (waitpid(-1, NULL, 0) > 0);
}

int main(int argc, char **argv)
{
	char here[PATH_MAX];
	pid_t workers[WORKERS];
	double seconds;
	int rounds;

	if (argc < 5 || !getcwd(here, sizeof(here)))
		return 2;
	state = strtoull(argv[1], NULL, 0) * 2654435761ULL + 88172645463325252ULL;
	rounds = atoi(argv[2]);
	seconds = atof(argv[3]);
	forbidden = argv + 4;
	forbidden_count = argc - 4;
	prctl(PR_SET_CHILD_SUBREAPER, 1);
	arena = mmap(NULL, ARENA, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	last_page = mmap(NULL, 2 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	hole = mmap(NULL, PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	calls = mmap(NULL, PAGE, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	if (arena == MAP_FAILED || last_page == MAP_FAILED || hole == MAP_FAILED || calls == MAP_FAILED)
		return 3;
	munmap(last_page + PAGE, PAGE);
	for (int round = 1; round <= rounds; round++) {
		double end = now() + seconds;
		char byte;
		int fd;

		for (int i = 0; i < WORKERS; i++)
			workers[i] = start(rnd());
		while (now() < end) {
			int one = below(WORKERS);

			poll(NULL, 0, 40 + below(160));
			/* killed in the middle of a call, and another in its place */
			stop(workers[one]);
			workers[one] = start(rnd());
		}
		for (int i = 0; i < WORKERS; i++)
			stop(workers[i]);
		end_children();
		chmod(here, 0700);
		unlink("go");
		if (mkfifo("go", 0600)) {
			perror("fuzzer: go");
			return 4;
		}
		/* a worker may have written half a line to the same pipe */
		printf("\nround %d: %lu calls\n", round, *calls);
		fflush(stdout);
		fd = open("go", O_RDONLY);
		if (fd < 0 || read(fd, &byte, 1) != 1)
			return 5;
		close(fd);
	}
	return 0;
}
