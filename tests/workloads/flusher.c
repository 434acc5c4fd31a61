/*
 * Flushes the TLB a known number of times, while other threads of it run on other processors. Usage: flusher MIB THREADS
 *
 * The thread that reads commands stays on the first processor, THREADS others spin on the rest. A piece of memory is
 * used once, and a page between two pieces stays mapped: so no page table is ever freed, no range grows, and each
 * call flushes exactly the piece's pages.
 */
#define _GNU_SOURCE
#include "area.h"

#include <errno.h>
#include <fcntl.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#ifndef MADV_PAGEOUT
#define MADV_PAGEOUT 21                        /* Linux 5.4 */
#endif

#define KEPT_PAGES 64                          /* the first pages: read by all threads, written by `touch` */

static struct area *area;
static uint32_t next_page = KEPT_PAGES;
static int cpus[CPU_SETSIZE];
static int cpu_count;
static uint64_t thread_count;
static atomic_ulong turns[MAX_THREADS];        /* of each thread that spins */

static void find_cpus(void)
{
	cpu_set_t set;

	if (sched_getaffinity(0, sizeof(set), &set))
		die("sched_getaffinity: %s", strerror(errno));
	for (int cpu = 0; cpu < CPU_SETSIZE; cpu++)
		if (CPU_ISSET(cpu, &set))
			cpus[cpu_count++] = cpu;
}

static void stay_on(int cpu)
{
	cpu_set_t set;

	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof(set), &set))
		die("sched_setaffinity: %s", strerror(errno));
}

static void *spin(void *arg)
{
	const volatile char *page = area->start;
	uintptr_t index = (uintptr_t)arg;

	stay_on(cpus[cpu_count > 1 ? 1 + (int)(index % (uintptr_t)(cpu_count - 1)) : 0]);
	for (uint32_t i = 0;; i = (i + 1) % KEPT_PAGES) {
		(void)page[i * PAGE_BYTES];
		atomic_fetch_add(&turns[index], 1);
	}
	return NULL;
}

/* Returns when every thread has just been seen to run: a busy machine may have taken its processor from it. */
static void wait_turns(void)
{
	for (uint64_t i = 0; i < thread_count; i++) {
		unsigned long seen = atomic_load(&turns[i]);

		while (atomic_load(&turns[i]) == seen)
			sched_yield();
	}
}

static void write_pages(uint32_t first, uint32_t count)
{
	static uint64_t value;

	for (uint32_t i = 0; i < count; i++)
		*(volatile uint64_t *)(area->start + (first + i) * PAGE_BYTES) = ++value;
}

/* One call that flushes; false with errno set. */
static bool flush(const char *how, char *start, size_t bytes)
{
	if (!strcmp(how, "mprotect"))
		return !mprotect(start, bytes, PROT_READ);
	if (!strcmp(how, "dontneed"))
		return !madvise(start, bytes, MADV_DONTNEED);
	return !munmap(start, bytes);
}

/* mprotect|dontneed|munmap COUNT PAGES: writes a new piece of PAGES pages, then flushes it; COUNT times. */
static void do_flush(const struct line *line)
{
	uint64_t count, pages;

	if (!word_u64(line, 1, 0, &count) || !word_u64(line, 2, 0, &pages) || count < 1 || pages < 1 ||
	    pages > area->pages || count > (area->pages - next_page) / (pages + 1)) {
		answer_error("%s COUNT PAGES, with no more than the %u pages left", line->argv[0], area->pages - next_page);
		return;
	}
	for (uint64_t i = 0; i < count; i++) {
		write_pages(next_page, (uint32_t)pages);
		wait_turns();
		if (!flush(line->argv[0], area->start + next_page * PAGE_BYTES, pages * PAGE_BYTES)) {
			answer_errno(line->argv[0]);
			return;
		}
		next_page += (uint32_t)pages + 1;
	}
	printf("{\"ok\":true,\"flushes\":%lu,\"pages\":%lu}", count, count * pages);
	answer_end();
}

/* pageout PATH: reads a file through a mapping, then has reclaim take its pages out of it: flushed all at once. */
static void do_pageout(const struct line *line)
{
	int fd = line->argc == 2 ? open(line->argv[1], O_RDONLY | O_CLOEXEC) : -1;
	struct stat file;
	volatile char *start;

	if (fd < 0 || fstat(fd, &file)) {
		answer_error("pageout PATH, of a file that can be read");
		return;
	}
	start = mmap(NULL, (size_t)file.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
	close(fd);
	if (start == MAP_FAILED) {
		answer_errno("mmap");
		return;
	}
	for (off_t at = 0; at < file.st_size; at += (off_t)PAGE_BYTES)
		(void)start[at];
	wait_turns();
	if (madvise((void *)start, (size_t)file.st_size, MADV_PAGEOUT)) {
		answer_errno("madvise");
		return;
	}
	printf("{\"ok\":true}");
	answer_end();
}

int main(int argc, char **argv)
{
	struct line line = {0};
	uint64_t mib, threads;

	if (argc != 3 || !parse_u64(argv[1], &mib) || !parse_u64(argv[2], &threads) || mib < 1 || threads > MAX_THREADS)
		die("usage: flusher MIB THREADS");
	protocol_start();
	find_cpus();
	area = area_need("flusher", "anon_private", mib);
	memset(area->start, 1, mib << 20);
	stay_on(cpus[0]);
	thread_count = threads;
	for (uint64_t i = 0; i < threads; i++) {
		pthread_t thread;

		if (pthread_create(&thread, NULL, spin, (void *)(uintptr_t)i))
			die("cannot start a thread");
	}
	printf("{\"ok\":true,\"pid\":%d,\"cpu\":%d,", (int)getpid(), cpus[0]);
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "touch")) {
			write_pages(0, KEPT_PAGES);
			wait_turns();
			printf("{\"ok\":true}");
			answer_end();
		} else if (!strcmp(line.argv[0], "mprotect") || !strcmp(line.argv[0], "dontneed") ||
			   !strcmp(line.argv[0], "munmap")) {
			do_flush(&line);
		} else if (!strcmp(line.argv[0], "pageout")) {
			do_pageout(&line);
		} else {
			answer_error("no such command: %s", line.argv[0]);
		}
	}
	return 0;
}
