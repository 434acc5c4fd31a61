/*
 * Has very many threads or mappings, or much memory, and writes some of it on command.
 * Usage: crowd threads|mappings|sparse AMOUNT
 *
 * threads: AMOUNT threads, each of which writes the page of its own number in the area `threads`.
 * mappings: about AMOUNT mappings of a page each, writable and read-only ones in turn so that none merge: the
 * first half in the private area `private`, the rest in the memfd `shared`.
 * sparse: AMOUNT GiB of the private area `sparse`, reserved only (MAP_NORESERVE).
 */
#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define MOST_THREADS 30000
#define STACK_BYTES (64UL << 10)

struct part {
	const char *name, *kind, *mapping_class;
	char *start;
	uint64_t pages;
	uint64_t step;                         /* every step-th page is writable */
	int fd;
};

static struct part part[2];
static int parts;
static uint64_t value = 1;                     /* of the last command: never 0, never the previous value */

static void write_page(const struct part *p, uint64_t page)
{
	__atomic_store_n((uint64_t *)(p->start + page * PAGE_BYTES), value, __ATOMIC_RELAXED);
}

/* Address space between two inaccessible pages, from a multiple of 2 MiB on. */
static char *reserve(uint64_t bytes)
{
	char *base = mmap(NULL, bytes + 3 * HUGE_BYTES, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (base == MAP_FAILED)
		die("cannot reserve %lu bytes: %s", bytes, strerror(errno));
	return (char *)(((uintptr_t)base + 2 * HUGE_BYTES) / HUGE_BYTES * HUGE_BYTES);
}

static void add_part(const char *name, const char *kind, uint64_t pages, uint64_t step)
{
	struct part *p = &part[parts++];
	bool shared = !strcmp(kind, "memfd");
	int flags = MAP_FIXED | MAP_NORESERVE | (shared ? MAP_SHARED : MAP_PRIVATE | MAP_ANONYMOUS);

	*p = (struct part){name, kind, shared ? "anon_shared" : kind, reserve(pages * PAGE_BYTES), pages, step, -1};
	if (shared) {
		p->fd = memfd_create(name, MFD_CLOEXEC);
		if (p->fd < 0 || ftruncate(p->fd, (off_t)(pages * PAGE_BYTES)))
			die("memfd: %s", strerror(errno));
	}
	if (mmap(p->start, pages * PAGE_BYTES, PROT_READ | PROT_WRITE, flags, p->fd, 0) == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	madvise(p->start, pages * PAGE_BYTES, MADV_NOHUGEPAGE);
	for (uint64_t i = 1; step > 1 && i < pages; i += step)
		if (mprotect(p->start + i * PAGE_BYTES, PAGE_BYTES, PROT_READ))
			die("mprotect of page %lu of %s: %s", i, name, strerror(errno));
}

/* ---- threads ---- */

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t wake = PTHREAD_COND_INITIALIZER, done = PTHREAD_COND_INITIALIZER;
static uint64_t run, pending;
static uint8_t *chosen;                        /* which threads write in this run */

static void *follow(void *arg)
{
	uint64_t mine = (uintptr_t)arg, seen = 0;

	pthread_mutex_lock(&lock);
	for (;;) {
		while (run == seen)
			pthread_cond_wait(&wake, &lock);
		seen = run;
		pthread_mutex_unlock(&lock);
		if (chosen[mine])
			write_page(&part[0], mine);
		pthread_mutex_lock(&lock);
		if (--pending == 0)
			pthread_cond_signal(&done);
	}
	return NULL;
}

static void start_threads(uint64_t count)
{
	pthread_attr_t attributes;
	pthread_t thread;

	chosen = must_alloc(count);
	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, STACK_BYTES);
	for (uintptr_t i = 0; i < count; i++) {
		int error = pthread_create(&thread, &attributes, follow, (void *)i);

		if (error)
			die("thread %lu: %s", i, strerror(error));
	}
}

static void run_threads(const uint32_t *page, uint64_t count)
{
	memset(chosen, 0, part[0].pages);
	for (uint64_t i = 0; i < count; i++)
		chosen[page[i]] = 1;
	pthread_mutex_lock(&lock);
	pending = part[0].pages;
	run++;
	pthread_cond_broadcast(&wake);
	while (pending)
		pthread_cond_wait(&done, &lock);
	pthread_mutex_unlock(&lock);
}

/* ---- commands ---- */

static struct part *find_part(const char *name)
{
	for (int i = 0; i < parts; i++)
		if (!strcmp(part[i].name, name))
			return &part[i];
	return NULL;
}

/* write AREA SEED COUNT: up to COUNT distinct pages, at random */
static void do_write(const struct line *line)
{
	struct part *p = line->argc > 1 ? find_part(line->argv[1]) : NULL;
	uint64_t seed, count, state, distinct = 0;
	uint64_t *pick;
	uint32_t *page;

	if (!p || !word_u64(line, 2, 1, &seed) || !word_u64(line, 3, 1, &count) || count < 1 || count > 1 << 20) {
		answer_error("write AREA SEED COUNT");
		return;
	}
	pick = must_alloc(count * sizeof(*pick));
	page = must_alloc(count * sizeof(*page));
	state = mix64(seed + 0x9e3779b97f4a7c15u) | 1;
	for (uint64_t i = 0; i < count; i++)
		pick[i] = xorshift64(&state) % ((p->pages + p->step - 1) / p->step) * p->step;
	qsort(pick, count, sizeof(*pick), compare_u64);
	for (uint64_t i = 0; i < count; i++)
		if (i == 0 || pick[i] != pick[i - 1])
			page[distinct++] = (uint32_t)pick[i];
	value++;
	if (chosen)
		run_threads(page, distinct);
	else
		for (uint64_t i = 0; i < distinct; i++)
			write_page(p, page[i]);
	printf("{\"ok\":true,\"area\":\"%s\",\"ranges\":", p->name);
	put_ranges(page, distinct);
	printf("}");
	answer_end();
	free(pick);
	free(page);
}

/* cut AREA PAGE: makes a read-only page writable, which joins three mappings, or read-only again */
static void do_cut(const struct line *line, int protection)
{
	struct part *p = line->argc > 1 ? find_part(line->argv[1]) : NULL;
	uint64_t page;

	if (!p || !word_u64(line, 2, 0, &page) || page >= p->pages || page % p->step == 0) {
		answer_error("join|cut AREA PAGE, of a page that is not for writing");
		return;
	}
	if (mprotect(p->start + page * PAGE_BYTES, PAGE_BYTES, protection)) {
		answer_errno("mprotect");
		return;
	}
	printf("{\"ok\":true}");
	answer_end();
}

static void greet(void)
{
	printf("{\"ok\":true,\"pid\":%d,\"areas\":[", (int)getpid());
	for (int i = 0; i < parts; i++)
		printf("%s{\"name\":\"%s\",\"kind\":\"%s\",\"mapping_class\":\"%s\",\"start\":%lu,\"end\":%lu,\"fd\":%d,"
		       "\"path\":\"\"}",
		       i ? "," : "", part[i].name, part[i].kind, part[i].mapping_class, (uintptr_t)part[i].start,
		       (uintptr_t)part[i].start + part[i].pages * PAGE_BYTES, part[i].fd);
	printf("]}");
	answer_end();
}

int main(int argc, char **argv)
{
	struct line line = {0};
	uint64_t amount;

	if (argc != 3 || !parse_u64(argv[2], &amount) || amount < 1)
		die("usage: crowd threads|mappings|sparse AMOUNT");
	protocol_start();
	if (!strcmp(argv[1], "threads") && amount <= MOST_THREADS) {
		add_part("threads", "anon_private", amount, 1);
		start_threads(amount);
	} else if (!strcmp(argv[1], "mappings")) {
		add_part("private", "anon_private", amount / 2, 2);
		add_part("shared", "memfd", amount - amount / 2, 2);
	} else if (!strcmp(argv[1], "sparse") && amount <= 16384) {
		add_part("sparse", "anon_private", amount << 18, 1);
	} else {
		die("crowd cannot have %s %s", argv[2], argv[1]);
	}
	greet();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "write"))
			do_write(&line);
		else if (!strcmp(line.argv[0], "join"))
			do_cut(&line, PROT_READ | PROT_WRITE);
		else if (!strcmp(line.argv[0], "cut"))
			do_cut(&line, PROT_READ);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	_exit(0);
}
