/*
 * Many processes at once, some of which wait for what does not come.
 *
 *   crowd OTHERS OPENS [truncate PATH | open PATH]...
 *
 * Each WORD PATH is done by a process of its own, which then says "PATH done".  OTHERS processes
 * open and read ./data OPENS times each; when all of them are done, "others: N opened, M failed"
 * is said.  Ends when the waiting ones have ended, too.  Where there is a FIFO ./go, the others
 * begin when somebody writes to it.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

struct count {
	unsigned long opened;
	unsigned long failed;
};

static void one(const char *word, const char *path)
{
	char line[4200];
	int result;

	if (!strcmp(word, "truncate"))
		result = truncate(path, 0);
	else
		result = open(path, O_RDONLY);
	snprintf(line, sizeof(line), "%s: %s\n", path, result < 0 ? strerror(errno) : "done");
	if (write(1, line, strlen(line)) < 0)
		_exit(1);
	_exit(0);
}

/* Wait for a byte from the FIFO, if there is one. */
static void await_go(void)
{
	int fd = open("go", O_RDONLY);
	char byte;

	if (fd < 0 && errno == ENOENT)
		return;
	if (fd < 0 || read(fd, &byte, 1) != 1)
		_exit(5);
	close(fd);
}

static void other(int opens, struct count *count)
{
	char byte;

	for (int i = 0; i < opens; i++) {
		int fd = open("data", O_RDONLY);

		if (fd < 0 || read(fd, &byte, 1) != 1)
			__atomic_add_fetch(&count->failed, 1, __ATOMIC_RELAXED);
		else
			__atomic_add_fetch(&count->opened, 1, __ATOMIC_RELAXED);
		if (fd >= 0)
			close(fd);
	}
	_exit(0);
}

int main(int argc, char **argv)
{
	struct count *count = mmap(NULL, sizeof(*count), PROT_READ | PROT_WRITE,
				   MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	int others = argc > 2 ? atoi(argv[1]) : 0;
	int waiting = 0;
	pid_t *pids = calloc(others + 1, sizeof(*pids));

	if (argc < 3 || count == MAP_FAILED || !pids)
		return 2;
	for (int i = 3; i + 1 < argc; i += 2, waiting++)
		switch (fork()) {
		case -1: return 3;
		case 0: one(argv[i], argv[i + 1]);
		}
	await_go();
	for (int i = 0; i < others; i++) {
		pids[i] = fork();
		if (pids[i] < 0)
			return 4;
		if (pids[i] == 0)
			other(atoi(argv[2]), count);
	}
	for (int i = 0; i < others; i++)
		waitpid(pids[i], NULL, 0);
	printf("others: %lu opened, %lu failed\n", count->opened, count->failed);
	fflush(stdout);
	while (wait(NULL) > 0 || errno == EINTR)
		;
	return 0;
}
