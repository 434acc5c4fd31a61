/*
 * Scans and write-protects a process's whole address space with as little code around the system call as
 * possible: the floor for a tracer's own scan. Usage: scanfloor PID [ROUNDS [all|written]]
 *
 * written: asks for that category alone, for which the kernel has a fast path, whose answer also has places
 * without a page.
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

/* Linux 6.7's <linux/fs.h>, under other names, because older headers lack them. */
struct scan_region {
	uint64_t start, end, categories;
};

struct scan_arg {
	uint64_t size, flags, start, end, walk_end, vec, vec_len, max_pages;
	uint64_t category_inverted, category_mask, category_anyof_mask, return_mask;
};

#define SCAN _IOWR('f', 16, struct scan_arg)
#define SCAN_WP_MATCHING (1u << 0)
#define IS_WPALLOWED (1u << 0)
#define IS_WRITTEN (1u << 1)
#define IS_FILE (1u << 2)
#define IS_PRESENT (1u << 3)
#define IS_SWAPPED (1u << 4)
#define IS_PFNZERO (1u << 5)
#define IS_HUGE (1u << 6)

#define REGIONS (1u << 16)
#define MOST_ROUNDS 100000
#define ADDRESS_END 0x7ffffffff000u           /* of user space with 4-level tables */

struct totals {
	uint64_t ns, cpu_ns, regions, pages, calls;
};

static bool written_only;

/* Processor time: what other processes took meanwhile does not count. */
static uint64_t thread_ns(void)
{
	struct timespec t;

	clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
	return (uint64_t)t.tv_sec * 1000000000u + (uint64_t)t.tv_nsec;
}

static bool scan(int fd, struct scan_region *region, struct totals *totals)
{
	struct scan_arg arg = {
		.size = sizeof(arg),
		.flags = SCAN_WP_MATCHING,
		.end = ADDRESS_END,
		.vec = (uintptr_t)region,
		.vec_len = REGIONS,
		.category_mask = IS_WPALLOWED | IS_WRITTEN,
		.return_mask = IS_WRITTEN | IS_PRESENT | IS_SWAPPED | IS_PFNZERO | IS_FILE | IS_HUGE,
	};
	uint64_t start, cpu;

	if (written_only)
		arg.category_mask = arg.return_mask = IS_WRITTEN;
	memset(totals, 0, sizeof(*totals));
	cpu = thread_ns();
	start = now_ns();
	while (arg.start < arg.end) {
		int filled = ioctl(fd, SCAN, &arg);

		if (filled < 0)
			return false;
		for (int i = 0; i < filled; i++)
			totals->pages += (region[i].end - region[i].start) / PAGE_BYTES;
		totals->regions += (uint64_t)filled;
		totals->calls++;
		arg.start = arg.walk_end;
	}
	totals->ns = now_ns() - start;
	totals->cpu_ns = thread_ns() - cpu;
	return true;
}

static void do_scan(int fd, uint64_t rounds, struct scan_region *region)
{
	struct totals totals, sum = {0};
	uint64_t *ns = must_alloc(rounds * sizeof(*ns)), *cpu_ns = must_alloc(rounds * sizeof(*cpu_ns));

	for (uint64_t i = 0; i < rounds; i++) {
		if (!scan(fd, region, &totals)) {
			answer_errno("PAGEMAP_SCAN");
			free(ns);
			free(cpu_ns);
			return;
		}
		ns[i] = totals.ns;
		cpu_ns[i] = totals.cpu_ns;
		sum.regions += totals.regions;
		sum.pages += totals.pages;
		sum.calls += totals.calls;
	}
	qsort(ns, rounds, sizeof(*ns), compare_u64);
	qsort(cpu_ns, rounds, sizeof(*cpu_ns), compare_u64);
	printf("{\"ok\":true,\"ns\":%lu,\"cpu_ns\":%lu,\"regions\":%lu,\"pages\":%lu,\"calls\":%lu,", ns[rounds / 2],
	       cpu_ns[rounds / 2], sum.regions, sum.pages, sum.calls);
	printf("\"rounds\":%lu,\"ns_min\":%lu,\"ns_max\":%lu}", rounds, ns[0], ns[rounds - 1]);
	answer_end();
	free(ns);
	free(cpu_ns);
}

int main(int argc, char **argv)
{
	struct scan_region *region = must_alloc(REGIONS * sizeof(*region));
	struct line line = {0};
	uint64_t pid, rounds = 1;
	char path[64];
	int fd;

	if (argc > 3)
		written_only = !strcmp(argv[3], "written");
	if (argc < 2 || argc > 4 || (argc > 3 && !written_only && strcmp(argv[3], "all")) || !parse_u64(argv[1], &pid) || (argc > 2 && !parse_u64(argv[2], &rounds)) ||
	    rounds < 1 || rounds > MOST_ROUNDS)
		die("usage: scanfloor PID [ROUNDS [all|written]]");
	protocol_start();
	/* Present before the first scan is timed. */
	memset(region, 1, REGIONS * sizeof(*region));
	snprintf(path, sizeof(path), "/proc/%lu/pagemap", pid);
	fd = open(path, O_RDONLY | O_CLOEXEC);
	if (fd < 0)
		die("%s: %s", path, strerror(errno));
	printf("{\"ok\":true,\"pid\":%d,\"target\":%lu,\"rounds\":%lu}", (int)getpid(), pid, rounds);
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "scan"))
			do_scan(fd, rounds, region);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	return 0;
}
