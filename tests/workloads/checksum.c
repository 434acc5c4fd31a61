/*
 * Calculates until stopped, and checks everything: memory against a recomputation, registers
 * across faults and system calls, and every system call's result. A tracer that corrupts a page, loses a
 * register or makes a call return early shows up as an error. Usage: checksum THREADS MIB
 */
#define _GNU_SOURCE
#include "area.h"
#include "registers.h"

#include <errno.h>
#include <linux/futex.h>
#include <poll.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define WORDS_A_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define STEPS 1024                             /* pages rewritten a loop: about as long as its sleeps */
#define COST_MIB 8
#define COST_PAGES (COST_MIB * 256)

/* No signal handlers anywhere in here: a handler would turn lost restarts of system calls into EINTR. */
enum check { MEMORY, REGISTERS, FLOATING, NANOSLEEP, PIPE_READ, FUTEX, POLL, GETPID, CHECKS };
static const char *const check_name[CHECKS] = {
	"memory", "registers", "floating", "nanosleep", "pipe_read", "futex", "poll", "getpid",
};

struct region {
	uint64_t *words;
	uint32_t *generation;                  /* the shadow, one a page: contents follow from it */
	uint32_t pages;
	uint64_t seed;
};

struct runner {
	pthread_t thread;
	_Atomic pid_t tid;
	struct region region[2];               /* private, shared: a separate slice in each */
	uint64_t random;
	int pipe[2];
	atomic_uint_fast64_t errors[CHECKS], loops;
};

static struct runner runners[MAX_THREADS];
static atomic_bool stop;
static pid_t own_pid;
static _Atomic uint32_t first_error[CHECKS];   /* errno or size of the first error, to print */

static void wrong(struct runner *runner, enum check check, uint32_t detail)
{
	uint32_t none = 0;

	atomic_fetch_add(&runner->errors[check], 1);
	atomic_compare_exchange_strong(&first_error[check], &none, detail);
}

/* ---- memory ---- */

static uint64_t expected(const struct region *region, uint32_t page, uint32_t generation, size_t word)
{
	return mix64(region->seed + ((uint64_t)page << 32 | generation) * 0x9e3779b97f4a7c15u + word) | 1;
}

static bool page_holds(const struct region *region, uint32_t page)
{
	const uint64_t *words = region->words + page * WORDS_A_PAGE;
	uint32_t generation = region->generation[page];

	for (size_t i = 0; i < WORDS_A_PAGE; i++)
		if (words[i] != (generation ? expected(region, page, generation, i) : 0))
			return false;
	return true;
}

static void rewrite(struct region *region, uint32_t page)
{
	uint32_t generation = ++region->generation[page];

	for (size_t i = 0; i < WORDS_A_PAGE; i++)
		region->words[page * WORDS_A_PAGE + i] = expected(region, page, generation, i);
}

/* One step of a chaotic map: an error in the last bit is a wholly different number 60 steps later. */
static inline double logistic(double x)
{
	return 3.9990234375 * x * (1.0 - x);
}

static void work_on_memory(struct runner *runner)
{
	double start = 0.1 + 0.8 * (double)(xorshift64(&runner->random) >> 12) / 4503599627370496.0;
	double x = start, y = start;

	for (int i = 0; i < STEPS; i++) {
		struct region *region = &runner->region[i & 1];
		uint32_t page = (uint32_t)(xorshift64(&runner->random) % region->pages);

		if (!page_holds(region, page))
			wrong(runner, MEMORY, page + 1);
		rewrite(region, page);
		x = logistic(x);
	}
	for (int i = 0; i < STEPS; i++)
		y = logistic(y);
	if (memcmp(&x, &y, sizeof(x)))
		wrong(runner, FLOATING, 1);
}

static void check_all_memory(struct runner *runner)
{
	for (int r = 0; r < 2; r++)
		for (uint32_t page = 0; page < runner->region[r].pages; page++)
			if (!page_holds(&runner->region[r], page))
				wrong(runner, MEMORY, page + 1);
}

/* ---- registers ---- */

static void work_in_registers(struct runner *runner)
{
	struct region *region = &runner->region[xorshift64(&runner->random) & 1];
	uint32_t page = (uint32_t)(xorshift64(&runner->random) % region->pages);
	uint64_t *word = region->words + page * WORDS_A_PAGE;
	uint64_t seed = xorshift64(&runner->random);
	int64_t got;
	bool kept;

	if (!page_holds(region, page))
		wrong(runner, MEMORY, page + 1);
	rewrite(region, page);
	/* Stores what is there already, so that the page's contents keep following from its generation. */
	kept = registers_survive(seed, word, *word, SYS_getppid, &got);
	if (!kept || got != (int64_t)getppid())
		wrong(runner, REGISTERS, 1);
	/* A call that sleeps for 1 ms: long enough to be stopped and restarted in the middle. */
	kept = registers_survive(seed + 1, word, *word, SYS_nanosleep, &got);
	if (!kept || got != 0)
		wrong(runner, REGISTERS, kept ? (uint32_t)-got : 1);
}

/* ---- system calls ---- */

static void work_in_syscalls(struct runner *runner)
{
	struct timespec half_ms = {0, 500000};
	uint32_t futex_word = 7;
	uint64_t start, value = 0, wanted;
	ssize_t got;
	long result;

	start = now_ns();
	if (nanosleep(&half_ms, NULL))
		wrong(runner, NANOSLEEP, (uint32_t)errno);
	else if (now_ns() - start < 500000)
		wrong(runner, NANOSLEEP, 1000);

	/* It is never woken, so it must time out, and not early. */
	start = now_ns();
	result = syscall(SYS_futex, &futex_word, FUTEX_WAIT_PRIVATE, 7, &half_ms, NULL, 0);
	if (result != -1 || errno != ETIMEDOUT)
		wrong(runner, FUTEX, result == -1 ? (uint32_t)errno : 1000);
	else if (now_ns() - start < 500000)
		wrong(runner, FUTEX, 1001);

	/* The pipe is empty, and this thread its only writer. */
	start = now_ns();
	result = poll(&(struct pollfd){.fd = runner->pipe[0], .events = POLLIN}, 1, 1);
	if (result != 0)
		wrong(runner, POLL, result < 0 ? (uint32_t)errno : 1000);
	else if (now_ns() - start < 1000000)
		wrong(runner, POLL, 1001);

	wanted = xorshift64(&runner->random);
	atomic_store(&runner->loops, atomic_load(&runner->loops) + 1);
	if (write(runner->pipe[1], &wanted, sizeof(wanted)) != (ssize_t)sizeof(wanted))
		wrong(runner, PIPE_READ, (uint32_t)errno);
	got = read(runner->pipe[0], &value, sizeof(value));
	if (got != (ssize_t)sizeof(value) || value != wanted)
		wrong(runner, PIPE_READ, got < 0 ? (uint32_t)errno : 1000);

	if (syscall(SYS_getpid) != own_pid || syscall(SYS_gettid) != runner->tid)
		wrong(runner, GETPID, 1);
}

/* ---- blocked readers: most of their life is one read(2), which must come back only with data ---- */

struct blocked {
	int pipe[2];
	struct runner *runner;
};

static void *read_blocked(void *arg)
{
	struct blocked *blocked = arg;

	for (uint64_t wanted = 1;; wanted++) {
		uint64_t value = 0;
		ssize_t got = read(blocked->pipe[0], &value, sizeof(value));

		if (got == 0)
			return NULL;
		if (got != (ssize_t)sizeof(value) || value != wanted)
			wrong(blocked->runner, PIPE_READ, got < 0 ? (uint32_t)errno : 1001);
	}
}

/* ---- the threads ---- */

static void *runner_main(void *arg)
{
	struct runner *runner = arg;
	struct blocked blocked = {.runner = runner};
	pthread_t reader;

	if (pipe(blocked.pipe) || pthread_create(&reader, NULL, read_blocked, &blocked))
		die("cannot start a reader");
	/* Last: a process that waits for it finds all threads and descriptors. */
	atomic_store(&runner->tid, gettid());
	for (uint64_t loop = 1; !atomic_load(&stop); loop++) {
		work_on_memory(runner);
		work_in_registers(runner);
		work_in_syscalls(runner);
		if (write(blocked.pipe[1], &loop, sizeof(loop)) != (ssize_t)sizeof(loop))
			wrong(runner, PIPE_READ, (uint32_t)errno);
		if (loop % 64 == 0)
			check_all_memory(runner);
	}
	check_all_memory(runner);
	close(blocked.pipe[1]);
	pthread_join(reader, NULL);
	close(blocked.pipe[0]);
	return NULL;
}

static void start_runner(int index, const struct area *private, const struct area *shared, uint32_t pages)
{
	struct runner *runner = &runners[index];

	runner->random = mix64((uint64_t)index + 1) | 1;
	if (pipe(runner->pipe))
		die("pipe: %s", strerror(errno));
	for (int r = 0; r < 2; r++) {
		runner->region[r].words = (uint64_t *)(r ? shared : private)->start + (size_t)index * pages * WORDS_A_PAGE;
		runner->region[r].generation = must_alloc(pages * sizeof(uint32_t));
		runner->region[r].pages = pages;
		runner->region[r].seed = mix64(runner->random + (uint64_t)r);
	}
	if (pthread_create(&runner->thread, NULL, runner_main, runner))
		die("cannot start a thread");
}

static void put_result(int threads)
{
	uint64_t errors[CHECKS] = {0}, total = 0, loops = 0;

	for (int t = 0; t < threads; t++) {
		loops += atomic_load(&runners[t].loops);
		for (int c = 0; c < CHECKS; c++)
			errors[c] += atomic_load(&runners[t].errors[c]);
	}
	for (int c = 0; c < CHECKS; c++)
		total += errors[c];
	printf("{\"ok\":%s,\"errors\":%lu,\"loops\":%lu,\"checks\":{", total ? "false" : "true", total, loops);
	for (int c = 0; c < CHECKS; c++)
		printf("%s\"%s\":%lu", c ? "," : "", check_name[c], errors[c]);
	printf("},\"first_detail\":{");
	for (int c = 0; c < CHECKS; c++)
		printf("%s\"%s\":%u", c ? "," : "", check_name[c], atomic_load(&first_error[c]));
	printf("}}");
	answer_end();
}

static long faults_so_far(void)
{
	struct rusage used;

	if (getrusage(RUSAGE_THREAD, &used))
		die("getrusage: %s", strerror(errno));
	return used.ru_minflt;
}

/*
 * Writes each page of the prepared area once, timing every one; the clock's own cost is taken off.
 * The faults are counted over the same writes: a busy machine changes the cost, never the faults.
 */
static void do_cost(volatile uint64_t *area)
{
	static uint64_t ns[COST_PAGES];
	static uint64_t sweep;
	uint64_t ticks_start, ns_start, idle = UINT64_MAX, median;
	double ns_a_tick;
	long faults;

	memset(ns, 0, sizeof(ns)); /* its own pages are there before the faults are counted */
	sweep++;
	faults = faults_so_far();
	ns_start = now_ns();
	ticks_start = read_ticks();
	for (size_t i = 0; i < COST_PAGES; i++) {
		uint64_t start = read_ticks();

		area[i * WORDS_A_PAGE] = sweep;
		ns[i] = read_ticks() - start;
	}
	faults = faults_so_far() - faults;
	/* Over at least 1 ms: what a shorter time says about the speed of the ticks is too coarse. */
	while (now_ns() - ns_start < 1000000)
		continue;
	ns_a_tick = (double)(now_ns() - ns_start) / (double)(read_ticks() - ticks_start);
	for (int i = 0; i < 1000; i++) {
		uint64_t start = read_ticks(), ticks = read_ticks() - start;

		idle = ticks < idle ? ticks : idle;
	}
	for (size_t i = 0; i < COST_PAGES; i++)
		ns[i] = ns[i] > idle ? ns[i] - idle : 0;
	qsort(ns, COST_PAGES, sizeof(*ns), compare_u64);
	median = ns[COST_PAGES / 2];
	printf("{\"ok\":true,\"median_ns\":%.1f,\"p90_ns\":%.1f,\"pages\":%d,\"faults\":%ld}",
	       (double)median * ns_a_tick, (double)ns[COST_PAGES * 9 / 10] * ns_a_tick, COST_PAGES, faults);
	answer_end();
}

int main(int argc, char **argv)
{
	uint64_t threads, mib;
	struct area *private, *shared, *cost;
	struct line line = {0};

	if (argc != 3 || !parse_u64(argv[1], &threads) || !parse_u64(argv[2], &mib) || threads < 1 ||
	    threads > MAX_THREADS || mib < 1)
		die("usage: checksum THREADS MIB (of each of two areas)");
	protocol_start();
	own_pid = getpid();
	private = area_need("private", "anon_private", mib);
	shared = area_need("shared", "anon_shared", mib);
	cost = area_need("cost", "anon_private", COST_MIB);
	memset(cost->start, 1, COST_PAGES * PAGE_BYTES);
	for (uint64_t i = 0; i < threads; i++)
		start_runner((int)i, private, shared, private->pages / (uint32_t)threads);
	for (uint64_t i = 0; i < threads; i++)
		while (!atomic_load(&runners[i].tid))
			sched_yield();
	printf("{\"ok\":true,\"pid\":%d,", (int)own_pid);
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "stop")) {
		if (!strcmp(line.argv[0], "cost"))
			do_cost((uint64_t *)cost->start);
		else if (!strcmp(line.argv[0], "status"))
			put_result((int)threads);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	atomic_store(&stop, true);
	for (uint64_t i = 0; i < threads; i++)
		pthread_join(runners[i].thread, NULL);
	put_result((int)threads);
	return 0;
}
