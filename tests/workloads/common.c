#define _GNU_SOURCE
#include "common.h"

#include <errno.h>
#include <sched.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

/* ---- line protocol ---- */

void protocol_start(void)
{
	/* Static, so that no answer, however long, grows a mapping while a test is counting pages. */
	static char buffer[1 << 20];

	setvbuf(stdout, buffer, _IOFBF, sizeof(buffer));
	if (sysconf(_SC_PAGESIZE) != (long)PAGE_BYTES)
		die("these programs assume pages of 4 KiB");
}

bool line_read(struct line *line)
{
	char *save = NULL;

	if (getline(&line->text, &line->cap, stdin) < 0)
		return false;
	line->argc = 0;
	for (char *word = strtok_r(line->text, " \t\n", &save); word && line->argc < MAX_WORDS;
	     word = strtok_r(NULL, " \t\n", &save))
		line->argv[line->argc++] = word;
	/* An empty line is an unknown command, not a crash. */
	if (line->argc == 0)
		line->argv[line->argc++] = line->text;
	return true;
}

void answer_end(void)
{
	putchar('\n');
	fflush(stdout);
}

void put_string(const char *text)
{
	putchar('"');
	for (; *text; text++) {
		unsigned char c = (unsigned char)*text;

		if (c == '"' || c == '\\')
			printf("\\%c", c);
		else if (c < 0x20)
			printf("\\u%04x", c);
		else
			putchar(c);
	}
	putchar('"');
}

void answer_error(const char *format, ...)
{
	char text[512];
	va_list args;

	va_start(args, format);
	vsnprintf(text, sizeof(text), format, args);
	va_end(args);
	printf("{\"ok\":false,\"error\":");
	put_string(text);
	printf("}");
	answer_end();
}

void answer_errno(const char *what)
{
	answer_error("%s: %s", what, strerror(errno));
}

_Noreturn void die(const char *format, ...)
{
	va_list args;

	va_start(args, format);
	vfprintf(stderr, format, args);
	va_end(args);
	fputc('\n', stderr);
	exit(1);
}

bool parse_u64(const char *text, uint64_t *value)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*value = strtoull(text, &end, 0);
	return errno == 0 && *end == '\0';
}

bool word_u64(const struct line *line, int index, uint64_t fallback, uint64_t *value)
{
	*value = fallback;
	return index >= line->argc || parse_u64(line->argv[index], value);
}

bool key_u64(const struct line *line, const char *key, uint64_t fallback, uint64_t *value)
{
	size_t length = strlen(key);

	*value = fallback;
	for (int i = 1; i < line->argc; i++)
		if (!strncmp(line->argv[i], key, length) && line->argv[i][length] == '=')
			return parse_u64(line->argv[i] + length + 1, value);
	return true;
}

/* ---- numbers ---- */

uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

uint64_t mix64(uint64_t value)
{
	value ^= value >> 30;
	value *= 0xbf58476d1ce4e5b9u;
	value ^= value >> 27;
	value *= 0x94d049bb133111ebu;
	return value ^ (value >> 31);
}

uint64_t xorshift64(uint64_t *state)
{
	uint64_t x = *state;

	x ^= x << 13;
	x ^= x >> 7;
	x ^= x << 17;
	return *state = x;
}

void *must_alloc(size_t bytes)
{
	void *memory = calloc(1, bytes ? bytes : 1);

	if (!memory)
		die("out of memory");
	return memory;
}

int compare_u64(const void *left, const void *right)
{
	uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;

	return (a > b) - (a < b);
}

/* ---- page lists ---- */

static int compare_u32(const void *left, const void *right)
{
	uint32_t a = *(const uint32_t *)left, b = *(const uint32_t *)right;

	return (a > b) - (a < b);
}

void put_ranges(const uint32_t *page, size_t count)
{
	uint32_t *sorted = must_alloc(count * sizeof(*sorted));
	const char *comma = "";

	if (count)
		memcpy(sorted, page, count * sizeof(*sorted));
	qsort(sorted, count, sizeof(*sorted), compare_u32);
	putchar('[');
	for (size_t i = 0; i < count;) {
		size_t last = i;

		while (last + 1 < count && sorted[last + 1] <= sorted[last] + 1)
			last++;
		printf("%s[%u,%u]", comma, sorted[i], sorted[last]);
		comma = ",";
		i = last + 1;
	}
	putchar(']');
	free(sorted);
}

/* ---- threads ---- */

void barrier_wait(struct barrier *barrier, unsigned parties)
{
	unsigned phase = atomic_load(&barrier->phase);

	if (atomic_fetch_add(&barrier->arrived, 1) + 1 == parties) {
		atomic_store(&barrier->arrived, 0);
		atomic_fetch_add(&barrier->phase, 1);
		return;
	}
	/* With more threads than processors, spinning alone would wait for a whole time slice. */
	for (unsigned spins = 0; atomic_load(&barrier->phase) == phase; spins++)
		if (spins > 2000)
			sched_yield();
}

static void *worker_main(void *arg)
{
	struct worker *self = arg;
	struct pool *pool = self->pool;
	uint64_t seen = 0;

	pthread_mutex_lock(&pool->lock);
	self->tid = gettid();
	pool->pending--;
	pthread_cond_signal(&pool->done);
	for (;;) {
		int active;

		while (pool->run == seen)
			pthread_cond_wait(&pool->wake, &pool->lock);
		seen = pool->run;
		active = pool->active;
		if (self->index >= active)
			continue;
		pthread_mutex_unlock(&pool->lock);
		barrier_wait(&pool->gate, (unsigned)active);
		self->start_ns = now_ns();
		pool->fn(self->index, active, pool->arg);
		self->end_ns = now_ns();
		pthread_mutex_lock(&pool->lock);
		if (--pool->pending == 0)
			pthread_cond_signal(&pool->done);
	}
	return NULL;
}

void pool_start(struct pool *pool, int count)
{
	if (count < 1 || count > MAX_THREADS)
		die("threads: 1 to %d", MAX_THREADS);
	pool->count = count;
	pool->pending = count;
	pthread_mutex_init(&pool->lock, NULL);
	pthread_cond_init(&pool->wake, NULL);
	pthread_cond_init(&pool->done, NULL);
	for (int i = 0; i < count; i++) {
		pool->worker[i].pool = pool;
		pool->worker[i].index = i;
		if (pthread_create(&pool->worker[i].thread, NULL, worker_main, &pool->worker[i]))
			die("cannot start a thread");
	}
	/* The greeting line lists the threads, so each one first reports its TID. */
	pthread_mutex_lock(&pool->lock);
	while (pool->pending)
		pthread_cond_wait(&pool->done, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
}

uint64_t pool_run(struct pool *pool, int active, pool_fn fn, void *arg)
{
	uint64_t start = UINT64_MAX, end = 0;

	pthread_mutex_lock(&pool->lock);
	pool->fn = fn;
	pool->arg = arg;
	pool->active = active;
	pool->pending = active;
	pool->run++;
	pthread_cond_broadcast(&pool->wake);
	while (pool->pending)
		pthread_cond_wait(&pool->done, &pool->lock);
	pthread_mutex_unlock(&pool->lock);
	for (int i = 0; i < active; i++) {
		const struct worker *worker = &pool->worker[i];

		start = worker->start_ns < start ? worker->start_ns : start;
		end = worker->end_ns > end ? worker->end_ns : end;
	}
	return end - start;
}
