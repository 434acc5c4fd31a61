/*
 * Processes and threads that borrow this one's memory. Usage: sharers
 *   vfork FIRST COUNT         a child that borrows the memory writes the pages and ends
 *   exec FIRST COUNT          the same, and then it runs another program (true)
 *   clone FIRST COUNT         a process that shares the memory until it ends writes the pages and ends
 *   threads FIRST COUNT       each page by a thread that starts for it and ends
 * Each answers the ranges, and `child`, the last process or thread.
 */
#define _GNU_SOURCE
#include "area.h"

#include <sched.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define STACK_BYTES 65536

static struct area *area;
static uint64_t first, count, value;
static _Alignas(16) char stack[STACK_BYTES];

static void write_pages(uint64_t from, uint64_t pages)
{
	for (uint64_t i = from; i < from + pages; i++)
		*(volatile uint64_t *)(area->start + i * PAGE_BYTES) = value;
}

/* Shares thread-local storage with its parent: no library calls in here. */
static int cloned(void *unused)
{
	(void)unused;
	write_pages(first, count);
	return 0;
}

static void *thread_writes(void *page)
{
	write_pages((uint64_t)(uintptr_t)page, 1);
	return (void *)(intptr_t)gettid();
}

static pid_t vforked(bool runs_another)
{
	pid_t pid = vfork();

	if (pid == 0) {
		write_pages(first, count);
		if (runs_another)
			execlp("true", "true", (char *)NULL);
		_exit(runs_another);
	}
	return pid;
}

static pid_t threads(void)
{
	void *tid = NULL;

	for (uint64_t i = first; i < first + count; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, thread_writes, (void *)(uintptr_t)i) || pthread_join(thread, &tid))
			die("cannot run a thread");
	}
	return (pid_t)(intptr_t)tid;
}

static void run(const struct line *line)
{
	const char *verb = line->argv[0];
	pid_t child = -1;
	int status = 0;

	if (!word_u64(line, 1, 0, &first) || !word_u64(line, 2, 1, &count) || count < 1 || first >= area->pages ||
	    count > area->pages - first) {
		answer_error("FIRST COUNT, within %u pages", area->pages);
		return;
	}
	value++;
	if (!strcmp(verb, "vfork"))
		child = vforked(false);
	else if (!strcmp(verb, "exec"))
		child = vforked(true);
	else if (!strcmp(verb, "clone"))
		child = clone(cloned, stack + STACK_BYTES, CLONE_VM | SIGCHLD, NULL);
	else
		child = strcmp(verb, "threads") ? 0 : threads();
	if (strcmp(verb, "threads") && child > 0)
		waitpid(child, &status, 0);
	if (child <= 0 || status) {
		answer_error("%s: no such command, or no child, or it ended with status %d", verb, status);
	} else {
		printf("{\"ok\":true,\"area\":\"a\",\"child\":%d,\"ranges\":[[%lu,%lu]]}", (int)child, first,
		       first + count - 1);
		answer_end();
	}
}

int main(void)
{
	struct line line = {0};

	protocol_start();
	area = area_need("a", "anon_private", 2);
	printf("{\"ok\":true,\"pid\":%d,", (int)getpid());
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit"))
		run(&line);
	return 0;
}
