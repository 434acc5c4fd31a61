/*
 * Writes pages that stay where they are while a thread changes the mappings all around them, so that the list
 * of mappings is never twice the same. Usage: churn SLOTS
 *
 * A slot is four pages: the first is only ever written by `write`; of the others one is made read-only and
 * writable again, one is unmapped and mapped anew, one is dropped. So the mapping of a first page is cut,
 * joined and cut again all the time.
 *   write SEED COUNT          writes the first pages of COUNT random slots
 *   start, stop               the changes; `stop` answers how many were made
 */
#define _GNU_SOURCE
#include "area.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define SLOT_PAGES 4UL

static struct area *area;
static uint64_t slots, value, changes;
static atomic_bool running;
static pthread_t thread;

static void change_slot(uint64_t slot, uint64_t random)
{
	char *page = area->start + slot * SLOT_PAGES * PAGE_BYTES;

	mprotect(page + PAGE_BYTES, PAGE_BYTES, random & 1 ? PROT_READ : PROT_READ | PROT_WRITE);
	if (random & 2)
		munmap(page + 2 * PAGE_BYTES, PAGE_BYTES);
	else if (mmap(page + 2 * PAGE_BYTES, PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1,
		      0) == MAP_FAILED)
		die("mmap in slot %lu failed", slot);
	madvise(page + 3 * PAGE_BYTES, PAGE_BYTES, MADV_DONTNEED);
	if (random & 4)
		*(volatile uint64_t *)(page + 3 * PAGE_BYTES) = random;
}

static void *change(void *unused)
{
	uint64_t state = 0x5eed;

	(void)unused;
	while (atomic_load(&running)) {
		uint64_t random = xorshift64(&state);

		change_slot((random >> 8) % slots, random);
		changes++;
	}
	return NULL;
}

static void do_write(uint64_t seed, uint64_t count)
{
	uint32_t *page = must_alloc(slots * sizeof(*page));
	uint64_t state = mix64(seed + 1) | 1;

	for (uint64_t i = 0; i < slots; i++)
		page[i] = (uint32_t)(i * SLOT_PAGES);
	value++;
	for (uint64_t i = 0; i < count; i++) {
		uint64_t other = i + xorshift64(&state) % (slots - i);
		uint32_t chosen = page[other];

		page[other] = page[i];
		page[i] = chosen;
		*(volatile uint64_t *)(area->start + chosen * PAGE_BYTES) = value;
	}
	printf("{\"ok\":true,\"area\":\"a\",\"ranges\":");
	put_ranges(page, count);
	printf("}");
	answer_end();
	free(page);
}

static void run(const struct line *line)
{
	uint64_t seed, count;

	if (!strcmp(line->argv[0], "write") && word_u64(line, 1, 1, &seed) && word_u64(line, 2, 1, &count) && count >= 1 &&
	    count <= slots) {
		do_write(seed, count);
	} else if (!strcmp(line->argv[0], "start") && !atomic_exchange(&running, true)) {
		if (pthread_create(&thread, NULL, change, NULL))
			die("cannot start a thread");
		printf("{\"ok\":true}");
		answer_end();
	} else if (!strcmp(line->argv[0], "stop") && atomic_exchange(&running, false)) {
		pthread_join(thread, NULL);
		printf("{\"ok\":true,\"changes\":%lu}", changes);
		answer_end();
	} else {
		answer_error("write SEED COUNT (up to %lu), start, or stop", slots);
	}
}

int main(int argc, char **argv)
{
	struct line line = {0};

	if (argc != 2 || !parse_u64(argv[1], &slots) || slots < 1 || slots > 1 << 16)
		die("usage: churn SLOTS");
	protocol_start();
	area = area_need("a", "anon_private", (slots * SLOT_PAGES * PAGE_BYTES + (1 << 20) - 1) >> 20);
	printf("{\"ok\":true,\"pid\":%d,", (int)getpid());
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit"))
		run(&line);
	return 0;
}
