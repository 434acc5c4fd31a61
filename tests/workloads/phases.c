/*
 * Writes, reads and remaps memory of every mapping class only on command, and answers which pages it
 * touched. Usage: phases DIR THREADS [NAME:KIND:MIB ...]
 */
#define _GNU_SOURCE
#include "layout.h"
#include "touch.h"

#include <alloca.h>
#include <errno.h>
#include <signal.h>
#include <stdio_ext.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static struct pool pool;
static bool is_child;
static pid_t child_pid;
static FILE *child_in, *child_out;

/* write|read|kread AREA PATTERN [SEED] [COUNT] [THREADS] [direct] */
static void do_touch(const struct line *line)
{
	struct area *area = wanted_area(line, 1);
	uint64_t seed, count, threads;
	enum touch how = TOUCH_WRITE;
	struct plan plan;

	if (!area)
		return;
	if (!strcmp(line->argv[0], "read"))
		how = TOUCH_READ;
	else if (!strcmp(line->argv[0], "kread"))
		how = line->argc > 6 && !strcmp(line->argv[6], "direct") ? TOUCH_DIRECT : TOUCH_KERNEL;
	if (!word_u64(line, 3, 1, &seed) || !word_u64(line, 4, 0, &count) || !word_u64(line, 5, 1, &threads) ||
	    threads < 1 || threads > (uint64_t)(is_child ? 1 : pool.count)) {
		answer_error("SEED COUNT THREADS must be numbers, with 1 to %d threads", is_child ? 1 : pool.count);
		return;
	}
	if (!plan_make(&plan, area, line->argc > 2 ? line->argv[2] : "all", seed, count))
		return;
	touch_run(is_child ? NULL : &pool, area, &plan, how, (int)threads);
	free(plan.pages.page);
}

static void *write_once(void *arg)
{
	const uint64_t *job = arg;

	touch_page((struct area *)(uintptr_t)job[0], (uint32_t)job[1]);
	return (void *)(intptr_t)gettid();
}

/* transient AREA FIRST COUNT: one short-lived thread a page, one after the other */
static void do_transient(const struct line *line)
{
	struct area *area = wanted_area(line, 1);
	uint32_t first, count;

	if (!area || !page_span(line, 2, area, &first, &count))
		return;
	printf("{\"ok\":true,\"area\":\"%s\",\"ranges\":[[%u,%u]],\"writers\":[", area->name, first, first + count - 1);
	for (uint32_t i = 0; i < count; i++) {
		uint64_t job[2] = {(uintptr_t)area, first + i};
		pthread_t thread;
		void *tid;

		if (pthread_create(&thread, NULL, write_once, job) || pthread_join(thread, &tid))
			die("cannot run a thread");
		printf("%s[%d,%u]", i ? "," : "", (int)(intptr_t)tid, first + i);
	}
	printf("]}");
	answer_end();
}

/* Writes one word in each page below the present stack pointer, top down as a growing stack does. */
__attribute__((noinline)) static uintptr_t grow_stack(uint64_t pages)
{
	volatile char *block = alloca(pages * PAGE_BYTES);

	for (uint64_t i = pages; i > 0; i--)
		block[(i - 1) * PAGE_BYTES] = (char)(i | 1);
	return (uintptr_t)block;
}

/* grow heap|stack PAGES */
static void do_grow(const struct line *line)
{
	uint64_t pages;
	uintptr_t start;

	if (line->argc < 3 || !word_u64(line, 2, 0, &pages) || pages < 1 || pages > 1024) {
		answer_error("grow heap|stack PAGES, up to 1024");
		return;
	}
	if (!strcmp(line->argv[1], "heap")) {
		void *old = sbrk((intptr_t)(pages * PAGE_BYTES));

		if (old == (void *)-1) {
			answer_errno("sbrk");
			return;
		}
		start = (uintptr_t)old;
		for (uint64_t i = 0; i < pages; i++)
			((volatile char *)old)[i * PAGE_BYTES] = (char)(i | 1);
	} else {
		start = grow_stack(pages);
	}
	printf("{\"ok\":true,\"first_page\":%lu,\"last_page\":%lu}", start / PAGE_BYTES, start / PAGE_BYTES + pages - 1);
	answer_end();
}

static void serve(void);

static void run_child(int in, int out)
{
	/* Its own ends only: with a copy of the parent's, it would never see that the parent has ended. */
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	if (dup2(in, 0) < 0 || dup2(out, 1) < 0)
		_exit(1);
	/* Lines that the parent had read ahead are the parent's. */
	__fpurge(stdin);
	is_child = true;
	touch_in_child();
	serve();
	_exit(0);
}

static void do_fork(void)
{
	int to_child[2], from_child[2];

	if (child_pid || is_child) {
		answer_error("one child at a time");
		return;
	}
	if (pipe(to_child) || pipe(from_child)) {
		answer_errno("pipe");
		return;
	}
	child_pid = fork();
	if (child_pid < 0) {
		child_pid = 0;
		answer_errno("fork");
		return;
	}
	if (child_pid == 0) {
		close(to_child[1]);
		close(from_child[0]);
		run_child(to_child[0], from_child[1]);
	}
	close(to_child[0]);
	close(from_child[1]);
	child_in = fdopen(to_child[1], "w");
	child_out = fdopen(from_child[0], "r");
	printf("{\"ok\":true,\"child\":%d}", (int)child_pid);
	answer_end();
}

static void child_reap(void)
{
	fclose(child_in);
	fclose(child_out);
	waitpid(child_pid, NULL, 0);
	child_pid = 0;
}

/* child COMMAND ...: passes the command on and its answer back */
static void do_child(const struct line *line)
{
	static char *answer;
	static size_t cap;

	if (!child_pid || line->argc < 2) {
		answer_error("no child, or nothing to tell it");
		return;
	}
	for (int i = 1; i < line->argc; i++)
		fprintf(child_in, "%s%c", line->argv[i], i + 1 < line->argc ? ' ' : '\n');
	fflush(child_in);
	if (getline(&answer, &cap, child_out) < 0) {
		child_reap();
		answer_error("the child is gone");
		return;
	}
	if (!strcmp(line->argv[1], "exit"))
		child_reap();
	fputs(answer, stdout);
	fflush(stdout);
}

static void do_areas(void)
{
	printf("{\"ok\":true,\"pid\":%d,\"tids\":[", (int)getpid());
	for (int i = 0; !is_child && i < pool.count; i++)
		printf("%s%d", i ? "," : "", (int)pool.worker[i].tid);
	printf("],");
	put_areas();
	printf("}");
	answer_end();
}

static void run(const struct line *line)
{
	const char *verb = line->argv[0];

	if (layout_command(line, is_child))
		return;
	if (!strcmp(verb, "write") || !strcmp(verb, "read") || !strcmp(verb, "kread"))
		do_touch(line);
	else if (!strcmp(verb, "areas"))
		do_areas();
	else if (!strcmp(verb, "transient"))
		do_transient(line);
	else if (!strcmp(verb, "grow"))
		do_grow(line);
	else if (!strcmp(verb, "fork"))
		do_fork();
	else if (!strcmp(verb, "child"))
		do_child(line);
	else
		answer_error("no such command: %s", verb);
}

static void serve(void)
{
	struct line line = {0};

	while (line_read(&line)) {
		if (!strcmp(line.argv[0], is_child ? "exit" : "quit")) {
			printf("{\"ok\":true}");
			answer_end();
			break;
		}
		run(&line);
	}
	free(line.text);
}

static void map_argument(char *text)
{
	char *save = NULL, *name = strtok_r(text, ":", &save), *kind = strtok_r(NULL, ":", &save), *mib = strtok_r(NULL, ":", &save);
	uint64_t size;

	if (!name || !kind || !mib || !parse_u64(mib, &size))
		die("an area is NAME:KIND:MIB");
	area_need(name, kind, size);
}

int main(int argc, char **argv)
{
	uint64_t threads;

	if (argc < 3 || !parse_u64(argv[2], &threads))
		die("usage: phases DIR THREADS [NAME:KIND:MIB ...]");
	protocol_start();
	areas_start(argv[1]);
	touch_start(argv[1]);
	/* Threads before areas, so that no thread's stack is next to an area. */
	pool_start(&pool, (int)threads);
	for (int i = 3; i < argc; i++)
		map_argument(argv[i]);
	do_areas();
	serve();
	if (child_pid)
		child_reap();
	areas_remove_files();
	return 0;
}
