/*
 * Writes pages at a known rate, in order or at random, so that its write curve is known in closed form.
 * Usage: writer MIB. Built statically it is also the only file of a test guest: as process 1 it takes its
 * parameters from the kernel's command line, reports on the console and powers the machine off.
 */
#define _GNU_SOURCE
#include "area.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/sysmacros.h>
#include <time.h>
#include <unistd.h>

#define SECOND_NS 1000000000u
#define PACE_NS 1000000u                       /* between two batches */

struct memory {
	char *start;
	uint64_t pages;
	uint8_t *seen;                         /* one a page: was it written in this run? */
};

struct job {
	bool uniform;
	uint64_t rate, pages, seconds, seed;   /* pages/s, pages, s (0: for ever), any */
	void (*report)(uint64_t writes, uint64_t start_ns);  /* NULL, or called about once a second */
};

struct result {
	uint64_t writes, distinct, start_ns, end_ns, latest_ns;
};

static struct memory map_memory(uint64_t mib)
{
	const struct area *area = area_need("writer", "anon_private", mib);
	struct memory memory = {.start = area->start, .pages = area->pages};

	memset(memory.start, 1, mib << 20);
	memory.seen = must_alloc(memory.pages);
	memset(memory.seen, 1, memory.pages);  /* present, before anyone counts pages */
	return memory;
}

static void sleep_until(uint64_t ns)
{
	struct timespec at = {.tv_sec = (time_t)(ns / SECOND_NS), .tv_nsec = (long)(ns % SECOND_NS)};

	while (clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &at, NULL) == EINTR)
		continue;
}

/* floor(rate * ns / 1 s) without overflow */
static uint64_t due(uint64_t rate, uint64_t ns)
{
	return rate * (ns / SECOND_NS) + rate * (ns % SECOND_NS) / SECOND_NS;
}

/*
 * Times are counted from the start, never from the last batch: a late wake-up is caught up with, and the
 * total is rate x seconds exactly.
 */
static struct result run(struct memory *memory, const struct job *job)
{
	struct result result = {.start_ns = now_ns()};
	uint64_t state = mix64(job->seed + 0x9e3779b97f4a7c15u) | 1, next = 0, reported = 0;
	uint64_t step = job->rate < SECOND_NS / PACE_NS ? SECOND_NS / job->rate : PACE_NS;
	uint64_t length = job->seconds * SECOND_NS;

	memset(memory->seen, 0, memory->pages);
	for (uint64_t at = step;; at += step) {
		uint64_t elapsed, wanted;

		at = length && at > length ? length : at;
		sleep_until(result.start_ns + at);
		elapsed = now_ns() - result.start_ns;
		if (elapsed - at > result.latest_ns)
			result.latest_ns = elapsed - at;
		wanted = due(job->rate, length && elapsed > length ? length : elapsed);
		for (; result.writes < wanted; result.writes++) {
			uint64_t page = job->uniform ? xorshift64(&state) % job->pages : next++;

			next = next == job->pages ? 0 : next;
			*(volatile uint64_t *)(memory->start + page * PAGE_BYTES) = result.writes + 2;
			result.distinct += !memory->seen[page];
			memory->seen[page] = 1;
		}
		if (job->report && elapsed / SECOND_NS > reported) {
			reported = elapsed / SECOND_NS;
			job->report(result.writes, result.start_ns);
		}
		if (length && at == length)
			break;
	}
	result.end_ns = now_ns();
	return result;
}

static void put_result(const struct result *result)
{
	printf("\"writes\":%lu,\"distinct\":%lu,\"start_ns\":%lu,\"end_ns\":%lu,\"latest_ns\":%lu}", result->writes,
	       result->distinct, result->start_ns, result->end_ns, result->latest_ns);
	answer_end();
}

/* run cyclic|uniform RATE PAGES SECONDS [SEED] */
static void do_run(const struct line *line, struct memory *memory)
{
	struct job job = {.uniform = line->argc > 1 && !strcmp(line->argv[1], "uniform")};
	struct result result;

	if (line->argc < 5 || (!job.uniform && strcmp(line->argv[1], "cyclic")) || !word_u64(line, 2, 0, &job.rate) ||
	    !word_u64(line, 3, 0, &job.pages) || !word_u64(line, 4, 0, &job.seconds) || !word_u64(line, 5, 1, &job.seed) ||
	    job.rate < 1 || job.seconds < 1 || job.pages < 1 || job.pages > memory->pages) {
		answer_error("run cyclic|uniform RATE PAGES SECONDS [SEED], with up to %lu pages", memory->pages);
		return;
	}
	result = run(memory, &job);
	printf("{\"ok\":true,");
	put_result(&result);
}

/* ---- as a guest's process 1 ---- */

static void report(uint64_t writes, uint64_t start_ns)
{
	printf("{\"event\":\"progress\",\"writes\":%lu,\"start_ns\":%lu,\"now_ns\":%lu}", writes, start_ns, now_ns());
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
	struct memory memory;
	struct result result;
	char pattern[16];
	int fd;

	open_console();
	protocol_start();
	mkdir("/proc", 0755);
	if (mount("proc", "/proc", "proc", 0, NULL) && errno != EBUSY)
		fprintf(stderr, "mount /proc: %s\n", strerror(errno));
	fd = open("/proc/cmdline", O_RDONLY);
	if (fd < 0 || read(fd, cmdline, sizeof(cmdline) - 1) < 0)
		fprintf(stderr, "/proc/cmdline: %s\n", strerror(errno));
	job.rate = boot_number(cmdline, "redirty.rate=", 8000);
	job.rate = job.rate ? job.rate : 1;
	job.seconds = boot_number(cmdline, "redirty.secs=", 0);
	job.uniform = boot_word(cmdline, "redirty.pattern=", pattern, sizeof(pattern)) && !strcmp(pattern, "uniform");
	memory = map_memory(boot_number(cmdline, "redirty.mib=", 64));
	job.pages = memory.pages;
	/* On a line of its own, whatever the firmware left on the console. */
	printf("\n{\"event\":\"start\",\"pattern\":\"%s\",\"rate\":%lu,\"pages\":%lu,\"seconds\":%lu,\"now_ns\":%lu}",
	       job.uniform ? "uniform" : "cyclic", job.rate, job.pages, job.seconds, now_ns());
	answer_end();
	result = run(&memory, &job);
	printf("{\"event\":\"done\",");
	put_result(&result);
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
