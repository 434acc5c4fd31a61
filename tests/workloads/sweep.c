/*
 * Writes to prepared memory page by page and reports how long that took: the cost of write faults, armed or
 * not, in the plainest form. Usage: sweep MIB anon|thp|memfd|file THREADS [DIR]
 */
#define _GNU_SOURCE
#include "area.h"

#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static struct pool pool;

struct job {
	char *start;
	uint64_t first, stride, count;         /* pages */
	uint64_t value;
};

static void sweep_part(int index, int active, void *arg)
{
	const struct job *job = arg;
	uint64_t from = job->count * (uint64_t)index / (uint64_t)active;
	uint64_t to = job->count * (uint64_t)(index + 1) / (uint64_t)active;
	char *page = job->start + (job->first + from * job->stride) * PAGE_BYTES;

	for (uint64_t i = from; i < to; i++, page += job->stride * PAGE_BYTES)
		*(volatile uint64_t *)page = job->value;
}

static void answer_time(uint64_t pages, uint64_t ns)
{
	printf("{\"ok\":true,\"pages\":%lu,\"ns\":%lu,\"ns_per_page\":%.2f}", pages, ns, (double)ns / (double)pages);
	answer_end();
}

/* sweep [stride=N] [first=PAGE] [count=PAGES] [threads=N] */
static void do_sweep(const struct line *line, const struct area *area)
{
	static uint64_t value;
	struct job job = {.start = area->start, .value = ++value};
	uint64_t threads;

	if (!key_u64(line, "stride", 1, &job.stride) || !key_u64(line, "first", 0, &job.first) ||
	    !key_u64(line, "count", 0, &job.count) || !key_u64(line, "threads", 1, &threads) || job.stride < 1 ||
	    job.first >= area->pages || threads < 1 || threads > (uint64_t)pool.count) {
		answer_error("sweep [stride=N] [first=PAGE] [count=PAGES] [threads=1..%d]", pool.count);
		return;
	}
	if (!job.count)
		job.count = (area->pages - job.first + job.stride - 1) / job.stride;
	if (job.first + (job.count - 1) * job.stride >= area->pages) {
		answer_error("beyond the %u pages of the area", area->pages);
		return;
	}
	answer_time(job.count, pool_run(&pool, (int)threads, sweep_part, &job));
}

/* touch [mib=N] [thp=1]: fresh private anonymous memory, first touch of each page, without the unmapping */
static void do_touch(const struct line *line)
{
	uint64_t mib, thp, start, ns;
	char *memory;

	if (!key_u64(line, "mib", 64, &mib) || !key_u64(line, "thp", 0, &thp) || mib < 1) {
		answer_error("touch [mib=N] [thp=0|1]");
		return;
	}
	start = now_ns();
	memory = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED) {
		answer_errno("mmap");
		return;
	}
	madvise(memory, mib << 20, thp ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
	for (size_t offset = 0; offset < mib << 20; offset += PAGE_BYTES)
		*(volatile char *)(memory + offset) = 1;
	ns = now_ns() - start;
	munmap(memory, mib << 20);
	answer_time((mib << 20) / PAGE_BYTES, ns);
}

/* filetouch PATH: maps the file, reads a byte of each page in a fixed random order, unmaps */
static void do_filetouch(const struct line *line)
{
	int fd = line->argc > 1 ? open(line->argv[1], O_RDONLY | O_CLOEXEC) : -1;
	uint64_t state = 0x2545f4914f6cdd1d, start, ns;
	struct stat status;
	uint32_t *order, pages;
	char *memory;

	if (fd < 0 || fstat(fd, &status) || status.st_size < (off_t)PAGE_BYTES) {
		answer_error("filetouch PATH, of a file of at least one page");
		if (fd >= 0)
			close(fd);
		return;
	}
	pages = (uint32_t)((uint64_t)status.st_size / PAGE_BYTES);
	order = must_alloc(pages * sizeof(*order));
	for (uint32_t i = 0; i < pages; i++) {
		uint32_t other = (uint32_t)(xorshift64(&state) % (i + 1));

		order[i] = order[other];
		order[other] = i;
	}
	start = now_ns();
	memory = mmap(NULL, pages * PAGE_BYTES, PROT_READ, MAP_SHARED, fd, 0);
	if (memory == MAP_FAILED) {
		answer_errno("mmap");
	} else {
		for (uint32_t i = 0; i < pages; i++)
			(void)*(volatile char *)(memory + order[i] * PAGE_BYTES);
		munmap(memory, pages * PAGE_BYTES);
		ns = now_ns() - start;
		answer_time(pages, ns);
	}
	free(order);
	close(fd);
}

struct flood {
	uint64_t end_ns, mib;
	atomic_uint_fast64_t pages;
};

static void flood_part(int index, int active, void *arg)
{
	struct flood *flood = arg;
	size_t bytes = flood->mib << 20;

	(void)index;
	(void)active;
	while (now_ns() < flood->end_ns) {
		char *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

		if (memory == MAP_FAILED)
			continue;
		madvise(memory, bytes, MADV_NOHUGEPAGE);
		for (size_t offset = 0; offset < bytes; offset += PAGE_BYTES)
			*(volatile char *)(memory + offset) = 1;
		munmap(memory, bytes);
		atomic_fetch_add(&flood->pages, bytes / PAGE_BYTES);
	}
}

/* flood SECONDS THREADS [mib=N]: map, touch, unmap, at full speed */
static void do_flood(const struct line *line)
{
	struct flood flood = {0};
	uint64_t seconds, threads, ns;
	struct rusage before, after;

	if (!word_u64(line, 1, 1, &seconds) || !word_u64(line, 2, 1, &threads) || !key_u64(line, "mib", 2, &flood.mib) ||
	    threads < 1 || threads > (uint64_t)pool.count || flood.mib < 1) {
		answer_error("flood SECONDS 1..%d [mib=N]", pool.count);
		return;
	}
	getrusage(RUSAGE_SELF, &before);
	flood.end_ns = now_ns() + seconds * 1000000000u;
	ns = pool_run(&pool, (int)threads, flood_part, &flood);
	getrusage(RUSAGE_SELF, &after);
	printf("{\"ok\":true,\"pages\":%lu,\"faults\":%ld,\"ns\":%lu,\"faults_per_s\":%.0f}", atomic_load(&flood.pages),
	       after.ru_minflt - before.ru_minflt, ns, (double)atomic_load(&flood.pages) * 1e9 / (double)ns);
	answer_end();
}

int main(int argc, char **argv)
{
	const char *kind = argc > 2 ? argv[2] : "";
	struct line line = {0};
	uint64_t mib, threads;
	struct area *area;

	if (argc < 4 || argc > 5 || !parse_u64(argv[1], &mib) || !parse_u64(argv[3], &threads))
		die("usage: sweep MIB anon|thp|memfd|file THREADS [DIR]");
	protocol_start();
	pool_start(&pool, (int)threads);
	areas_start(argc > 4 ? argv[4] : NULL);
	kind = !strcmp(kind, "anon") ? "anon_private" : !strcmp(kind, "file") ? "file_shared" : kind;
	area = area_need("sweep", kind, mib);
	memset(area->start, 1, area->pages * PAGE_BYTES);
	printf("{\"ok\":true,\"pid\":%d,", (int)getpid());
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "sweep"))
			do_sweep(&line, area);
		else if (!strcmp(line.argv[0], "touch"))
			do_touch(&line);
		else if (!strcmp(line.argv[0], "filetouch"))
			do_filetouch(&line);
		else if (!strcmp(line.argv[0], "flood"))
			do_flood(&line);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	areas_remove_files();
	return 0;
}
