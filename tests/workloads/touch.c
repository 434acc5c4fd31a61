#define _GNU_SOURCE
#include "touch.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SOURCE_BYTES (1UL << 20)
#define WORDS_A_PAGE (PAGE_BYTES / sizeof(uint64_t))

static int source_fd = -1, direct_fd = -1;
static int source_errno, direct_errno;
static uint64_t command;                       /* number of touching commands so far */
static uint64_t process_bit;                   /* top bit of every value that a child writes */

/* ---- plans ---- */

static void plan_random(struct plan *plan, uint32_t total, uint64_t seed)
{
	uint32_t *all = must_alloc(total * sizeof(*all));
	/* xorshift never leaves 0, so no seed may become it. */
	uint64_t state = mix64(seed + 0x9e3779b97f4a7c15u) | 1;

	for (uint32_t i = 0; i < total; i++)
		all[i] = i;
	/* A partial Fisher-Yates shuffle: distinct pages, in random order. */
	for (size_t i = 0; i < plan->pages.count; i++) {
		uint32_t other = (uint32_t)(i + xorshift64(&state) % (total - i));
		uint32_t page = all[other];

		all[other] = all[i];
		all[i] = page;
	}
	plan->pages.page = all;
}

bool plan_make(struct plan *plan, const struct area *area, const char *pattern, uint64_t seed, uint64_t count)
{
	uint64_t first = 0, step = 1, most;
	bool random = false;

	memset(plan, 0, sizeof(*plan));
	if (!strncmp(pattern, "collide", 7) && (pattern[7] == '\0' || pattern[7] == ':')) {
		plan->collide = true;
		pattern = pattern[7] ? pattern + 8 : "all";
	}
	if (!strncmp(pattern, "stride:", 7) && parse_u64(pattern + 7, &step) && step > 0) {
		first = seed % step;
	} else if (!strncmp(pattern, "range:", 6) && parse_u64(pattern + 6, &first)) {
		step = 1;
	} else if (!strcmp(pattern, "random")) {
		random = true;
	} else if (strcmp(pattern, "all")) {
		answer_error("no such pattern: %s", pattern);
		return false;
	}
	most = first < area->pages ? (area->pages - first + step - 1) / step : 0;
	if (count > most || most == 0) {
		answer_error("%s of %s has only %lu pages", pattern, area->name, most);
		return false;
	}
	plan->pages.count = count ? count : most;
	if (random) {
		plan_random(plan, area->pages, seed);
		return true;
	}
	plan->pages.page = must_alloc(plan->pages.count * sizeof(*plan->pages.page));
	for (size_t i = 0; i < plan->pages.count; i++)
		plan->pages.page[i] = (uint32_t)(first + i * step);
	return true;
}

/* ---- touching ---- */

void touch_start(const char *directory)
{
	char path[4096];
	uint64_t *block = must_alloc(SOURCE_BYTES);

	for (size_t i = 0; i < SOURCE_BYTES / sizeof(*block); i++)
		block[i] = mix64(i + 0x5eed) | 1;
	snprintf(path, sizeof(path), "%s/source.%d", directory, (int)getpid());
	source_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (source_fd < 0 || write(source_fd, block, SOURCE_BYTES) != (ssize_t)SOURCE_BYTES || fsync(source_fd))
		source_errno = errno;
	/* tmpfs before Linux 6.6 and some others refuse O_DIRECT: only `direct` fails then. */
	direct_fd = open(path, O_RDONLY | O_DIRECT | O_CLOEXEC);
	if (direct_fd < 0)
		direct_errno = errno;
	unlink(path);
	free(block);
}

void touch_in_child(void)
{
	process_bit = 1ull << 63;
}

static void write_page(struct area *area, uint32_t page, int thread)
{
	uint64_t *words = (uint64_t *)(area->start + page * PAGE_BYTES);
	/* Never 0, and never what this word held before: the command's number is in it. */
	uint64_t value = process_bit | (command & 0xffffff) << 39 | (uint64_t)thread << 32 | 1 | (uint64_t)page << 1;

	/* Another word each time, so that a page remembers several writes. Atomic: threads collide on purpose. */
	__atomic_store_n(&words[(page * 7u + command) % WORDS_A_PAGE], value, __ATOMIC_RELAXED);
}

static void read_page(struct area *area, uint32_t page)
{
	(void)__atomic_load_n((uint64_t *)(area->start + page * PAGE_BYTES), __ATOMIC_RELAXED);
}

void touch_page(struct area *area, uint32_t page)
{
	command++;
	write_page(area, page, 0);
}

struct job {
	struct area *area;
	const struct plan *plan;
	enum touch how;
	struct barrier barrier;
	atomic_int error;                      /* the first errno */
};

/* pages[from..to) of the plan that belong to one of the threads */
static void share(const struct plan *plan, int index, int active, size_t *from, size_t *to)
{
	size_t count = plan->pages.count, n = (size_t)active, i = (size_t)index;

	*from = plan->collide ? 0 : count * i / n;
	*to = plan->collide ? count : count * (i + 1) / n;
}

/* The kernel fills `run` adjacent pages with one read: so a direct read pins more than one page at once. */
static void kernel_fill(struct job *job, uint32_t page, size_t run)
{
	int fd = job->how == TOUCH_DIRECT ? direct_fd : source_fd;
	/* A different part of the source each time, so that the pages change. */
	uint64_t slots = SOURCE_BYTES / PAGE_BYTES - run + 1, offset = (command * 31 + page) % slots * PAGE_BYTES;
	ssize_t got = pread(fd, job->area->start + page * PAGE_BYTES, run * PAGE_BYTES, (off_t)offset);

	if (got != (ssize_t)(run * PAGE_BYTES))
		atomic_store(&job->error, got < 0 ? errno : EIO);
}

static void touch_part(int index, int active, void *arg)
{
	struct job *job = arg;
	const uint32_t *page = job->plan->pages.page;
	size_t from, to;

	share(job->plan, index, active, &from, &to);
	for (size_t i = from; i < to; i++) {
		size_t run = 1;

		if (job->plan->collide)
			barrier_wait(&job->barrier, (unsigned)active);
		switch (job->how) {
		case TOUCH_WRITE:
			write_page(job->area, page[i], index);
			break;
		case TOUCH_READ:
			read_page(job->area, page[i]);
			break;
		case TOUCH_KERNEL:
		case TOUCH_DIRECT:
			while (!job->plan->collide && run < 64 && i + run < to && page[i + run] == page[i] + run)
				run++;
			kernel_fill(job, page[i], run);
			i += run - 1;
			break;
		}
	}
}

static bool may_touch(const struct area *area, const struct plan *plan, enum touch how)
{
	int missing = how == TOUCH_KERNEL ? source_errno : how == TOUCH_DIRECT ? direct_errno : 0;

	if (missing) {
		answer_error("no file to read from: %s", strerror(missing));
		return false;
	}
	for (size_t i = 0; how != TOUCH_READ && i < plan->pages.count; i++) {
		if (area->readonly[plan->pages.page[i]]) {
			answer_error("page %u of %s is read-only", plan->pages.page[i], area->name);
			return false;
		}
	}
	return true;
}

static void put_share(const struct plan *plan, pid_t tid, int index, int active)
{
	size_t from, to;

	share(plan, index, active, &from, &to);
	printf("%s\"%d\":", index ? "," : "", (int)tid);
	put_ranges(plan->pages.page + from, to - from);
}

void touch_run(struct pool *pool, struct area *area, struct plan *plan, enum touch how, int threads)
{
	struct job job = {.area = area, .plan = plan, .how = how};
	uint64_t start, end;

	if (!may_touch(area, plan, how))
		return;
	command++;
	start = now_ns();
	if (pool)
		pool_run(pool, threads, touch_part, &job);
	else
		touch_part(0, 1, &job);
	end = now_ns();
	if (job.error) {
		answer_error("the kernel's read into %s: %s", area->name, strerror(job.error));
		return;
	}
	printf("{\"ok\":true,\"area\":\"%s\",\"pages\":%zu,\"start_ns\":%lu,\"end_ns\":%lu,\"ranges\":",
	       area->name, plan->pages.count, start, end);
	put_ranges(plan->pages.page, plan->pages.count);
	printf(",\"threads\":{");
	for (int i = 0; i < (pool ? threads : 1); i++)
		put_share(plan, pool ? pool->worker[i].tid : gettid(), i, pool ? threads : 1);
	printf("}}");
	answer_end();
}
