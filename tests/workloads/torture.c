/*
 * torture DIR THREADS SEED MIB [KERNEL_WRITES [HUGE]]
 * Threads write at random into every mapping class while the mappings change under them and children start and
 * end. `go` starts it, `rest` stops it: after its answer no thread and no child writes until the next `go`.
 * `torture child FD SLOT SEED` is what its children exec.
 */
#define _GNU_SOURCE
#include "torture.h"

#include <errno.h>
#include <limits.h>
#include <linux/futex.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define SOURCE_BYTES (1UL << 20)

struct control *control;
int control_fd, source_fd;
struct spot spots[MAX_SPOTS];
int spot_count;
uint64_t kernel_writes;

static struct writer writers[MAX_THREADS], churner;
static int writer_count;

/* ---- rest ---- */

void nap(uint64_t us)
{
	struct timespec time = {.tv_sec = (time_t)(us / 1000000), .tv_nsec = (long)(us % 1000000 * 1000)};

	nanosleep(&time, NULL);
}

void rest_point(atomic_uint *parked)
{
	unsigned run = atomic_load(&control->run);

	while (!(run & 1)) {
		atomic_store(parked, run);
		/* Not FUTEX_PRIVATE_FLAG: children wait on it, too. */
		syscall(SYS_futex, &control->run, FUTEX_WAIT, run, NULL, NULL, 0);
		run = atomic_load(&control->run);
	}
}

static void wait_parked(const struct writer *writer, unsigned rest)
{
	while (atomic_load(&writer->parked) != rest)
		nap(200);
}

static void do_go(void)
{
	atomic_fetch_add(&control->run, 1);
	syscall(SYS_futex, &control->run, FUTEX_WAKE, INT_MAX, NULL, NULL, 0);
	printf("{\"ok\":true}");
	answer_end();
}

static void do_rest(void)
{
	unsigned rest = atomic_fetch_add(&control->run, 1) + 1;
	unsigned long writes = 0, reads = 0, by_children = 0;
	const char *comma = "";

	for (int i = 0; i < writer_count; i++)
		wait_parked(&writers[i], rest);
	wait_parked(&churner, rest);
	children_settle(rest);
	for (int i = 0; i < writer_count; i++) {
		writes += atomic_load(&writers[i].writes);
		reads += atomic_load(&writers[i].reads);
	}
	printf("{\"ok\":true,\"children\":[");
	for (int i = 0; i < MAX_CHILDREN; i++) {
		by_children += atomic_load(&control->child[i].writes);
		if (!atomic_load(&control->child[i].pid))
			continue;
		printf("%s%d", comma, atomic_load(&control->child[i].pid));
		comma = ",";
	}
	printf("],\"writes\":%lu,\"reads\":%lu,\"child_writes\":%lu,\"churn\":{", writes, reads, by_children);
	for (int i = 0; i < CHURNS; i++)
		printf("%s\"%s\":%lu", i ? "," : "", churn_name[i], churned[i]);
	printf("},");
	put_areas();
	printf("}");
	answer_end();
}

/* armed PID: no error for one that has ended since. */
static void do_armed(const struct line *line)
{
	uint64_t pid;

	if (!word_u64(line, 1, 0, &pid)) {
		answer_error("armed PID");
		return;
	}
	for (int i = 0; i < MAX_CHILDREN; i++)
		if ((uint64_t)atomic_load(&control->child[i].pid) == pid)
			atomic_store(&control->child[i].armed, true);
	printf("{\"ok\":true}");
	answer_end();
}

/* ---- writing ---- */

void writer_start(struct writer *writer, uint64_t seed)
{
	writer->random = mix64(seed) | 1;
	writer->value = writer->random << 32;
}

/* One write of some kind to a page, or, rarely, a read. */
static void touch(struct writer *w, const struct spot *spot, uint32_t page)
{
	volatile uint64_t *words = (volatile uint64_t *)(spot->area->start + page * PAGE_BYTES);
	uint64_t random = xorshift64(&w->random), word = random >> 55, way = random % 64;

	if (way < 4) {
		(void)words[word];
		atomic_fetch_add(&w->reads, 1);
		return;
	}
	w->value++;
	if (way == 4) {
		/* The kernel writes, through the processor's page tables. */
		if (pread(source_fd, (void *)(words + word), 8, (off_t)(random >> 20) & (SOURCE_BYTES - 8)) != 8)
			return;
	} else if (way == 5 && kernel_writes > spot->shared) {
		/* The kernel writes, by its own way into memory. */
		struct iovec from = {&w->value, 8}, to = {(void *)(words + word), 8};

		if (process_vm_writev(getpid(), &from, 1, &to, 1, 0) != 8)
			return;
	} else if (way < 10) {
		for (int i = 0; i < 512; i++)
			words[i] = w->value;
	} else {
		words[word] = w->value;
	}
	atomic_fetch_add(&w->writes, 1);
}

void burst(struct writer *w)
{
	uint64_t random = xorshift64(&w->random);
	struct spot *spot = &spots[random % (uint64_t)spot_count];
	uint32_t count = 1 + (random >> 8) % 64, first = (uint32_t)(random >> 20), stride = (random >> 16) & 3;

	/*
	 * With userfaultfd a child's shared memory is not protected before its first boundary: a read, or a write to a
	 * neighbour in the same large folio, makes its pages writable, and if it ends before that its writes are lost.
	 */
	if (w->alone && (spot->kept || (spot->shared && !atomic_load(&control->child[w->slot].armed))))
		return;
	if (!w->alone && pthread_rwlock_tryrdlock(&spot->lock))
		return;
	for (uint32_t i = 0; i < count; i++) {
		uint32_t page = (stride ? first + i * stride : (uint32_t)xorshift64(&w->random)) % spot->area->pages;

		if (!spot->area->readonly[page])
			touch(w, spot, page);
	}
	if (!w->alone)
		pthread_rwlock_unlock(&spot->lock);
}

static void *writer_main(void *arg)
{
	struct writer *self = arg;

	for (;;) {
		rest_point(&self->parked);
		burst(self);
		if (xorshift64(&self->random) % 2 == 0)
			nap(xorshift64(&self->random) % 1000);
	}
	return NULL;
}

static void *churn_main(void *arg)
{
	struct writer *self = arg;

	for (;;) {
		rest_point(&self->parked);
		churn_once(self);
		nap(xorshift64(&self->random) % 2000);
	}
	return NULL;
}

/* ---- start ---- */

static void add_spot(const char *kind, uint64_t mib, bool steady)
{
	struct spot *spot = &spots[spot_count++];

	snprintf(spot->name, sizeof(spot->name), "%s_%s", kind, steady ? "steady" : "churned");
	pthread_rwlock_init(&spot->lock, NULL);
	spot->kind = kind;
	spot->mib = mib;
	spot->steady = steady;
	spot->shared = !strcmp(kind, "anon_shared") || !strcmp(kind, "memfd") || !strcmp(kind, "file_shared");
	spot->kept = spot->shared && (!steady || !strcmp(kind, "file_shared"));
	spot_map(spot);
}

static void *map_control(int fd)
{
	void *got = mmap(NULL, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (got == MAP_FAILED)
		die("control: %s", strerror(errno));
	return got;
}

static int make_source(uint64_t seed)
{
	static uint64_t words[SOURCE_BYTES / 8];
	int fd = memfd_create("source", 0);

	for (size_t i = 0; i < SOURCE_BYTES / 8; i++)
		words[i] = mix64(seed + i) | 1;
	if (fd < 0 || write(fd, words, sizeof(words)) != (ssize_t)sizeof(words))
		die("source: %s", strerror(errno));
	return fd;
}

static void start_thread(void *(*body)(void *), struct writer *writer, uint64_t seed)
{
	pthread_t thread;

	writer_start(writer, seed);
	if (pthread_create(&thread, NULL, body, writer))
		die("cannot start a thread");
}

static bool argument_u64(int argc, char **argv, int index, uint64_t fallback, uint64_t *value)
{
	*value = fallback;
	return index >= argc || parse_u64(argv[index], value);
}

int main(int argc, char **argv)
{
	static const char *const kinds[] = {"anon_private", "anon_shared", "memfd", "file_private", "file_shared", "thp"};
	uint64_t threads, seed, mib, slot, fd, huge;
	struct line line = {0};

	if (argc == 5 && !strcmp(argv[1], "child") && parse_u64(argv[2], &fd) && parse_u64(argv[3], &slot) &&
	    parse_u64(argv[4], &seed) && slot < MAX_CHILDREN) {
		control = map_control((int)fd);
		run_after_exec((int)slot, seed);
	}
	if (argc < 5 || !parse_u64(argv[2], &threads) || !parse_u64(argv[3], &seed) || !parse_u64(argv[4], &mib) ||
	    threads < 1 || threads > MAX_THREADS || mib < 1 || !argument_u64(argc, argv, 5, 0, &kernel_writes) ||
	    !argument_u64(argc, argv, 6, 1, &huge))
		die("usage: torture DIR THREADS SEED MIB [KERNEL_WRITES [HUGE]]");
	protocol_start();
	areas_start(argv[1]);
	control_fd = memfd_create("control", 0);
	if (control_fd < 0 || ftruncate(control_fd, PAGE_BYTES))
		die("control: %s", strerror(errno));
	control = map_control(control_fd);
	source_fd = make_source(seed);
	for (size_t i = 0; i < sizeof(kinds) / sizeof(*kinds); i++) {
		if (!huge && !strcmp(kinds[i], "thp"))
			continue;
		add_spot(kinds[i], 2 * mib, true);
		add_spot(kinds[i], !strcmp(kinds[i], "thp") ? 2 * mib : mib, false);
	}
	writer_count = (int)threads;
	for (int i = 0; i < writer_count; i++)
		start_thread(writer_main, &writers[i], seed * 1000 + (uint64_t)i);
	start_thread(churn_main, &churner, seed * 1000 + 999);
	printf("{\"ok\":true,\"pid\":%d,", (int)getpid());
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		bool going = atomic_load(&control->run) & 1;

		if (!strcmp(line.argv[0], "go") && !going)
			do_go();
		else if (!strcmp(line.argv[0], "rest") && going)
			do_rest();
		else if (!strcmp(line.argv[0], "armed"))
			do_armed(&line);
		else
			answer_error("go and rest, in turn, or armed PID");
	}
	children_end();
	areas_remove_files();
	return 0;
}
