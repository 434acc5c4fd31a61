/* What every workload program shares: the line protocol, clocks, page lists and a pool of threads. */
#ifndef WORKLOADS_COMMON_H
#define WORKLOADS_COMMON_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/types.h>

#define PAGE_BYTES 4096UL
#define HUGE_BYTES (2UL << 20)
#define MAX_WORDS 32
#define MAX_THREADS 64

/* ---- line protocol ---- */
struct line {
	char *text;
	size_t cap;
	int argc;
	char *argv[MAX_WORDS];
};

void protocol_start(void);
bool line_read(struct line *line);             /* false at the end of the input */
void answer_end(void);                         /* ends the JSON line and flushes it */
void answer_error(const char *format, ...) __attribute__((format(printf, 1, 2)));
void answer_errno(const char *what);
void put_string(const char *text);             /* a JSON string, escaped */
_Noreturn void die(const char *format, ...) __attribute__((format(printf, 1, 2)));

bool parse_u64(const char *text, uint64_t *value);
/* The number at argv[index], or `fallback` where the line is shorter; false when it is not a number. */
bool word_u64(const struct line *line, int index, uint64_t fallback, uint64_t *value);
/* The number of a word `key=NUMBER`; otherwise as word_u64. */
bool key_u64(const struct line *line, const char *key, uint64_t fallback, uint64_t *value);

/* ---- numbers ---- */
uint64_t now_ns(void);                         /* CLOCK_MONOTONIC */
uint64_t mix64(uint64_t value);                /* splitmix64's finaliser */
uint64_t xorshift64(uint64_t *state);
void *must_alloc(size_t bytes);                /* zeroed */
int compare_u64(const void *left, const void *right);

/* ---- page lists ---- */
struct pages {
	uint32_t *page;
	size_t count;
};

/* Prints [[first,last],...] of the set of pages; `page` itself stays in the order of writing. */
void put_ranges(const uint32_t *page, size_t count);

/* ---- threads ---- */
/* Spins, because threads that wake from a futex do so one after the other and would not collide. */
struct barrier {
	atomic_uint arrived;
	atomic_uint phase;
};

void barrier_wait(struct barrier *barrier, unsigned parties);

struct pool;
typedef void (*pool_fn)(int index, int active, void *arg);

struct worker {
	struct pool *pool;
	pthread_t thread;
	int index;
	pid_t tid;
	uint64_t start_ns, end_ns;             /* of this worker's part of the last run */
};

struct pool {
	int count;
	struct worker worker[MAX_THREADS];
	pthread_mutex_t lock;
	pthread_cond_t wake, done;
	uint64_t run;                          /* counts runs; a worker joins each one once */
	int active, pending;
	pool_fn fn;
	void *arg;
	struct barrier gate;
};

void pool_start(struct pool *pool, int count);
/* Runs fn on workers 0..active-1, released together; returns the ns from first start to last end. */
uint64_t pool_run(struct pool *pool, int active, pool_fn fn, void *arg);

#endif
