/*
 * Writes pages at a known rate, in an order of pattern.h, so that its write curve is known in closed form.
 * Usage: writer MIB. Built statically it is also the only file of a test guest: as process 1 it takes its
 * parameters from the kernel's command line, reports on the console and powers the machine off.
 */
#define _GNU_SOURCE
#include "area.h"
#include "pattern.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define PACE_NS 1000000u                       /* between two batches */
#define NOTED_WRITES 64

struct memory {
	char *start;
	uint64_t pages;
	uint64_t *last;                        /* one a page: what this run wrote there last, 0 for nothing */
	uint64_t sum;                          /* of `last` */
};

struct result {
	uint64_t writes, distinct, start_ns, end_ns, latest_ns;
};

struct moment {
	uint32_t us, writes;                   /* since the start; writes made by then */
};

struct log {
	struct moment *moments;
	uint64_t count, room;
};

struct job {
	struct pattern pattern;
	struct log *log;                       /* or NULL */
	uint64_t seconds, seed;                /* s (0: for ever), any */
	/* NULL, or called about once a second */
	void (*report)(const struct memory *memory, const struct result *result);
};

static volatile sig_atomic_t told_to_end;

static void end_run(int number)
{
	(void)number;
	told_to_end = 1;
}

static struct memory map_memory(uint64_t mib)
{
	const struct area *area = area_need("writer", "anon_private", mib);
	struct memory memory = {.start = area->start, .pages = area->pages};

	memset(memory.start, 1, mib << 20);
	memory.last = must_alloc(memory.pages * sizeof(*memory.last));
	memset(memory.last, 1, memory.pages * sizeof(*memory.last));  /* present, before pages are counted */
	return memory;
}

static void sleep_until(uint64_t ns)
{
	struct timespec at = {.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
		continue;
}

static void write_page(struct memory *memory, uint64_t page, struct result *result)
{
	uint64_t value = ++result->writes + 1;

	*(volatile uint64_t *)(memory->start + page * PAGE_BYTES) = value;
	result->distinct += !memory->last[page];
	memory->sum += value - memory->last[page];
	memory->last[page] = value;
}

/* Pages that don't hold what was written last, and one more when the list of that is itself wrong. */
static uint64_t wrong_pages(const struct memory *memory)
{
	uint64_t wrong = 0, sum = 0;

	for (uint64_t page = 0; page < memory->pages; page++) {
		uint64_t last = memory->last[page];

		sum += last;
		wrong += last && *(volatile uint64_t *)(memory->start + page * PAGE_BYTES) != last;
	}
	return wrong + (sum != memory->sum);
}

static void note(struct log *log, const struct result *result)
{
	if (log && log->count < log->room)
		log->moments[log->count++] =
			(struct moment){(uint32_t)((now_ns() - result->start_ns) / 1000), (uint32_t)result->writes};
}

/*
 * Times are counted from the start, never from the last batch: a late wake-up is caught up with, and the
 * total is rate x seconds exactly, unless a signal ended the run.
 */
static struct result run(struct memory *memory, const struct job *job)
{
	struct result result = {.start_ns = now_ns()};
	struct pattern pattern = job->pattern;
	uint64_t step = pattern.rate < SECOND_NS / PACE_NS ? SECOND_NS / pattern.rate : PACE_NS;
	uint64_t length = job->seconds * SECOND_NS, reported = 0;

	pattern_start(&pattern, job->seed);
	memset(memory->last, 0, memory->pages * sizeof(*memory->last));
	memory->sum = 0;
	for (uint64_t at = step;; at += step) {
		uint64_t elapsed, wanted;

		at = length && at > length ? length : at;
		sleep_until(result.start_ns + at);
		elapsed = now_ns() - result.start_ns;
		if (elapsed - at > result.latest_ns)
			result.latest_ns = elapsed - at;
		wanted = pattern_due(&pattern, length && elapsed > length ? length : elapsed);
		note(job->log, &result);
		while (result.writes < wanted) {
			write_page(memory, pattern_page(&pattern), &result);
			if (result.writes % NOTED_WRITES == 0)
				note(job->log, &result); /* in a long batch, after a late wake-up */
		}
		note(job->log, &result);
		if (job->report && elapsed / SECOND_NS > reported) {
			reported = elapsed / SECOND_NS;
			job->report(memory, &result);
		}
		if ((length && at == length) || told_to_end)
			break;
	}
	result.end_ns = now_ns();
	return result;
}

static void put_result(const struct result *result)
{
	printf("\"writes\":%lu,\"distinct\":%lu,\"start_ns\":%lu,\"end_ns\":%lu,\"latest_ns\":%lu", result->writes,
	       result->distinct, result->start_ns, result->end_ns, result->latest_ns);
}

/* Room for both ends of each batch, and more in long ones. Its pages are there before the run, and written in it. */
static struct log new_log(const struct job *job)
{
	struct log log = {.room = 2 * (job->seconds * (SECOND_NS / PACE_NS) + 1) +
				  job->seconds * job->pattern.rate / NOTED_WRITES};

	/* A huge page would be written as a whole: 512 pages at once that nobody expects. */
	if (prctl(PR_SET_THP_DISABLE, 1, 0, 0, 0))
		die("prctl: no small pages alone");
	log.moments = must_alloc(log.room * sizeof(*log.moments));
	memset(log.moments, 1, log.room * sizeof(*log.moments));
	return log;
}

static void put_log(const struct log *log)
{
	printf(",\"moments\":[");
	for (uint64_t i = 0; i < log->count; i++)
		printf("%s%u,%u", i ? "," : "", log->moments[i].us, log->moments[i].writes);
	printf("]");
}

/* run PATTERN RATE PAGES SECONDS [SEED [LOG]]; SIGTERM ends it after its batch. */
static void do_run(const struct line *line, struct memory *memory)
{
	struct log log = {0};
	struct job job = {0};
	struct pattern *pattern = &job.pattern;
	struct result result;
	uint64_t logged;

	if (line->argc < 5 || !order_find(line->argv[1], &pattern->order) || !word_u64(line, 2, 0, &pattern->rate) ||
	    !word_u64(line, 3, 0, &pattern->pages) || !word_u64(line, 4, 0, &job.seconds) || !word_u64(line, 5, 1, &job.seed) ||
	    !word_u64(line, 6, 0, &logged) ||
	    pattern->rate < 1 || job.seconds < 1 || pattern->pages < 1 || pattern->pages > memory->pages) {
		answer_error("run cyclic|uniform|hot_cold|bursty|zipf RATE PAGES SECONDS [SEED [LOG]], with up to %lu pages", memory->pages);
		return;
	}
	if (logged) {
		log = new_log(&job);
		job.log = &log;
	}
	told_to_end = 0;
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = end_run, .sa_flags = (int)SA_RESTART}, NULL);
	result = run(memory, &job);
	sigaction(SIGTERM, &(struct sigaction){.sa_handler = SIG_DFL}, NULL);
	printf("{\"ok\":true,");
	put_result(&result);
	if (logged)
		put_log(&log);
	printf("}");
	answer_end();
	free(log.moments);
}

/* ---- as a guest's process 1 ---- */

static void report(const struct memory *memory, const struct result *result)
{
	printf("{\"event\":\"progress\",\"writes\":%lu,\"start_ns\":%lu,\"now_ns\":%lu,\"latest_ns\":%lu,\"wrong\":%lu}",
	       result->writes, result->start_ns, now_ns(), result->latest_ns, wrong_pages(memory));
	answer_end();
}

/* The value of redirty.KEY= on the kernel's command line, copied to `value`; false where there is none. */
static bool boot_word(const char *cmdline, const char *key, char *value, size_t size)
{
	const char *found = strstr(cmdline, key);
	size_t length;

	if (!found)
		return false;
	found += strlen(key);
	length = strcspn(found, " \n");
	if (length >= size)
		return false;
	memcpy(value, found, length);
	value[length] = '\0';
	return true;
}

static uint64_t boot_number(const char *cmdline, const char *key, uint64_t fallback)
{
	uint64_t number;
	char value[32];

	return boot_word(cmdline, key, value, sizeof(value)) && parse_u64(value, &number) ? number : fallback;
}

static void open_console(void)
{
	int fd = open("/dev/console", O_RDWR);

	/* An initramfs without device files, or a kernel without a console: the first serial port will do. */
	if (fd < 0) {
		mkdir("/dev", 0755);
		mknod("/dev/ttyS0", S_IFCHR | 0600, makedev(4, 64));
		fd = open("/dev/ttyS0", O_RDWR);
	}
	for (int standard = 0; fd >= 0 && standard < 3; standard++)
		dup2(fd, standard);
}

static _Noreturn void guest(void)
{
	static char cmdline[8192];
	struct job job = {.report = report, .seed = 1};
	struct pattern *pattern = &job.pattern;
	struct memory memory;
	struct result result;
	char order[16];
	int fd;

	open_console();
	protocol_start();
	mkdir("/proc", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) && errno != EBUSY)
		fprintf(stderr, "mount /proc: %s\n", strerror(errno));
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		fprintf(stderr, "/proc/cmdline: %s\n", strerror(errno));
	pattern->rate = boot_number(cmdline, "redirty.rate=", 8000);
	pattern->rate = pattern->rate ? pattern->rate : 1;
	job.seconds = boot_number(cmdline, "redirty.secs=", 0);
	if (boot_word(cmdline, "redirty.pattern=", order, sizeof(order)) && !order_find(order, &pattern->order))
		fprintf(stderr, "no such pattern: %s\n", order);
	memory = map_memory(boot_number(cmdline, "redirty.mib=", 64));
	pattern->pages = memory.pages;
	/* On a line of its own, whatever the firmware left on the console. */
	printf("\n{\"event\":\"start\",\"pattern\":\"%s\",\"rate\":%lu,\"pages\":%lu,\"seconds\":%lu,\"now_ns\":%lu}",
	       order_name(pattern->order), pattern->rate, pattern->pages, job.seconds, now_ns());
	answer_end();
	result = run(&memory, &job);
	printf("{\"event\":\"done\",");
	put_result(&result);
	printf("}");
	answer_end();
	sync();
	reboot(RB_POWER_OFF);
	/* A machine that cannot power off still must not panic: process 1 never returns. */
	for (;;)
		pause();
}

int main(int argc, char **argv)
{
	struct line line = {0};
	struct memory memory;
	uint64_t mib;

	if (getpid() == 1)
		guest();
	if (argc != 2 || !parse_u64(argv[1], &mib) || mib < 1)
		die("usage: writer MIB");
	protocol_start();
	memory = map_memory(mib);
	printf("{\"ok\":true,\"pid\":%d,", (int)getpid());
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "run"))
			do_run(&line, &memory);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	return 0;
}
