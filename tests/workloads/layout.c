/* Commands that change how an area is mapped, or which of its pages the kernel keeps. */
#define _GNU_SOURCE
#include "layout.h"

#include <string.h>
#include <sys/mman.h>

struct area *wanted_area(const struct line *line, int index)
{
	struct area *area = index < line->argc ? area_find(line->argv[index]) : NULL;

	if (!area)
		answer_error("no such area: %s", index < line->argc ? line->argv[index] : "");
	return area;
}

static void answer_area(const struct area *area)
{
	printf("{\"ok\":true,\"area\":");
	put_area(area);
	printf("}");
	answer_end();
}

bool page_span(const struct line *line, int index, const struct area *area, uint32_t *first, uint32_t *count)
{
	uint64_t from, pages;

	if (!word_u64(line, index, 0, &from) || !word_u64(line, index + 1, 0, &pages) || from >= area->pages ||
	    pages > area->pages - from) {
		answer_error("FIRST COUNT must lie within the %u pages of %s", area->pages, area->name);
		return false;
	}
	*first = (uint32_t)from;
	*count = (uint32_t)(pages ? pages : area->pages - from);
	return true;
}

static void answer_span(const struct area *area, uint32_t first, uint32_t count)
{
	printf("{\"ok\":true,\"area\":\"%s\",\"ranges\":[[%u,%u]]}", area->name, first, first + count - 1);
	answer_end();
}

static const struct {
	const char *name;
	int value;
} advices[] = {
	{"dontneed", MADV_DONTNEED}, {"free", MADV_FREE}, {"remove", MADV_REMOVE},
	{"hugepage", MADV_HUGEPAGE}, {"nohugepage", MADV_NOHUGEPAGE}, {"collapse", 25 /* MADV_COLLAPSE, 6.1 */},
	{"pageout", MADV_PAGEOUT}, {"mergeable", MADV_MERGEABLE}, {"unmergeable", MADV_UNMERGEABLE},
};

static void advise(const struct line *line, const char *advice, int index)
{
	struct area *area = wanted_area(line, 1);
	uint32_t first, count;

	if (!area || !page_span(line, index, area, &first, &count))
		return;
	for (size_t i = 0; i < sizeof(advices) / sizeof(*advices); i++) {
		if (strcmp(advices[i].name, advice))
			continue;
		if (madvise(area->start + first * PAGE_BYTES, count * PAGE_BYTES, advices[i].value))
			answer_errno("madvise");
		else
			answer_span(area, first, count);
		return;
	}
	answer_error("no such advice: %s", advice);
}

static void do_mprotect(const struct line *line)
{
	struct area *area = wanted_area(line, 1);
	bool readonly = line->argc > 2 && !strcmp(line->argv[2], "ro");
	uint32_t first, count;

	if (!area || !page_span(line, 3, area, &first, &count))
		return;
	if (line->argc < 3 || (!readonly && strcmp(line->argv[2], "rw")))
		answer_error("mprotect AREA ro|rw");
	else if (!area_protect(area, readonly, first, count))
		answer_errno("mprotect");
	else
		answer_span(area, first, count);
}

static void do_map(const struct line *line)
{
	uint64_t mib, address;
	const char *what = "";
	struct area *area;

	if (line->argc < 4 || !word_u64(line, 3, 0, &mib) || !word_u64(line, 4, 0, &address)) {
		answer_error("mapnew NAME KIND MIB [ADDRESS]");
		return;
	}
	area = area_map(line->argv[1], line->argv[2], mib, address, &what);
	if (area)
		answer_area(area);
	else
		answer_errno(what);
}

static void do_alias(const struct line *line)
{
	struct area *of = wanted_area(line, 2), *area;
	const char *what = "";

	if (!of)
		return;
	area = area_alias(line->argv[1], of, &what);
	if (area)
		answer_area(area);
	else
		answer_errno(what);
}

static void do_remap(const struct line *line)
{
	struct area *area = wanted_area(line, 1);
	const char *what = "";
	uint64_t mib, skew;

	if (!area)
		return;
	if (!word_u64(line, 2, 0, &mib) || !word_u64(line, 3, 0, &skew))
		answer_error("remap NAME [MIB] [SKEW_PAGES]");
	else if (!area_move(area, mib, skew, &what))
		answer_errno(what);
	else
		answer_area(area);
}

static void do_unmap(const struct line *line, bool in_child)
{
	struct area *area = wanted_area(line, 1);

	if (!area)
		return;
	/* The child's copy of an area goes away with its memory only; its file is the parent's. */
	if (in_child)
		area->path[0] = '\0';
	area_unmap(area);
	printf("{\"ok\":true}");
	answer_end();
}

static void do_msync(const struct line *line)
{
	struct area *area = wanted_area(line, 1);

	if (!area)
		return;
	if (msync(area->start, area->pages * PAGE_BYTES, MS_SYNC))
		answer_errno("msync");
	else
		answer_span(area, 0, area->pages);
}

/* The sum of mix64(word + (index + 1) * odd constant) mod 2^64: order counts, and numpy can repeat it. */
static uint64_t digest(const struct area *area)
{
	const uint64_t *word = (const uint64_t *)area->start;
	size_t words = area->pages * PAGE_BYTES / sizeof(*word);
	uint64_t sum = 0;

	for (size_t i = 0; i < words; i++)
		sum += mix64(word[i] + (i + 1) * 0x9e3779b97f4a7c15u);
	return sum;
}

static void do_digest(const struct line *line)
{
	const char *comma = "";

	if (line->argc > 1 && !area_find(line->argv[1])) {
		answer_error("no such area: %s", line->argv[1]);
		return;
	}
	printf("{\"ok\":true,\"digests\":{");
	for (int i = 0; i < MAX_AREAS; i++) {
		const struct area *area = area_at(i);

		if (!area || (line->argc > 1 && strcmp(area->name, line->argv[1])))
			continue;
		printf("%s\"%s\":\"%016lx\"", comma, area->name, digest(area));
		comma = ",";
	}
	printf("}}");
	answer_end();
}

bool layout_command(const struct line *line, bool in_child)
{
	const char *verb = line->argv[0];

	if (!strcmp(verb, "dontneed"))
		advise(line, "dontneed", 2);
	else if (!strcmp(verb, "advise"))
		advise(line, line->argc > 2 ? line->argv[2] : "", 3);
	else if (!strcmp(verb, "mprotect"))
		do_mprotect(line);
	else if (!strcmp(verb, "mapnew"))
		do_map(line);
	else if (!strcmp(verb, "alias"))
		do_alias(line);
	else if (!strcmp(verb, "unmap"))
		do_unmap(line, in_child);
	else if (!strcmp(verb, "remap"))
		do_remap(line);
	else if (!strcmp(verb, "msync"))
		do_msync(line);
	else if (!strcmp(verb, "digest"))
		do_digest(line);
	else
		return false;
	return true;
}
