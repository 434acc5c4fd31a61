/*
 * Counts in memory, checks a sum over all of it again and again, and keeps its progress in a file. It needs
 * neither a terminal nor a pipe nor libraries, so that a checkpoint of it can be restored anywhere.
 * Usage: counting MIB HOT_PAGES FILE
 */
#define _GNU_SOURCE
#include "area.h"

#include <fcntl.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

#define WORDS_A_PAGE (PAGE_BYTES / sizeof(uint64_t))
#define STEPS 512                              /* of counting, between two checks of all memory */
#define PAUSE_NS 20000000

static uint64_t sum_of(const uint64_t *words, uint64_t pages)
{
	uint64_t sum = 0;

	for (uint64_t i = 0; i < pages * WORDS_A_PAGE; i++)
		sum += words[i] * (2 * i + 1);
	return sum;
}

static void report(int fd, uint64_t count, uint64_t checks, uint64_t wrong)
{
	char text[96];
	/* of fixed length: it overwrites the previous line */
	int size = snprintf(text, sizeof(text), "%20lu %20lu %20lu\n", count, checks, wrong);

	if (pwrite(fd, text, (size_t)size, 0) != size)
		die("cannot write its progress");
}

int main(int argc, char **argv)
{
	uint64_t mib, hot, sum, count = 0, checks = 0, wrong = 0, random = 1;
	const struct timespec pause = {0, PAUSE_NS};
	uint64_t *words;
	uint64_t pages;
	int fd;

	if (argc != 4 || !parse_u64(argv[1], &mib) || !parse_u64(argv[2], &hot) || !mib || !hot || hot > mib * 256)
		die("usage: counting MIB HOT_PAGES FILE");
	fd = open(argv[3], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0)
		die("cannot open %s", argv[3]);
	words = (uint64_t *)area_need("counting", "anon_private", mib)->start;
	pages = mib * 256;
	for (uint64_t i = 0; i < pages * WORDS_A_PAGE; i++)
		words[i] = mix64(i);
	sum = sum_of(words, pages);
	for (;;) {
		for (int step = 0; step < STEPS; step++) {
			uint64_t page = xorshift64(&random) % hot;
			uint64_t at = page * WORDS_A_PAGE + random / hot % WORDS_A_PAGE;

			words[at]++;
			sum += 2 * at + 1;
			count++;
		}
		wrong += sum_of(words, pages) != sum;
		report(fd, count, ++checks, wrong);
		nanosleep(&pause, NULL);
	}
}
