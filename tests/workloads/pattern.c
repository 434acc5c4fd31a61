#include "pattern.h"

#include <math.h>
#include <string.h>

static const char *const order_names[ORDERS] = {"cyclic", "uniform", "hot_cold", "bursty", "zipf"};

bool order_find(const char *name, enum order *order)
{
	for (int i = 0; i < ORDERS; i++) {
		if (!strcmp(order_names[i], name)) {
			*order = (enum order)i;
			return true;
		}
	}
	return false;
}

const char *order_name(enum order order)
{
	return order_names[order];
}

void pattern_start(struct pattern *pattern, uint64_t seed)
{
	pattern->state = mix64(seed + 0x9e3779b97f4a7c15u) | 1;
	pattern->next = 0;
}

/* Uniform among the hot pages, or among the cold ones; too few pages to part are all hot. */
static uint64_t hot_or_cold(struct pattern *pattern)
{
	uint64_t hot = pattern->pages / HOT_PART, first = 0, count = hot;

	if (hot == 0) {
		count = pattern->pages;
	} else if (xorshift64(&pattern->state) % COLD_WRITES_PART == 0) {
		first = hot;
		count = pattern->pages - hot;
	}
	return first + xorshift64(&pattern->state) % count;
}

uint64_t pattern_page(struct pattern *pattern)
{
	uint64_t page;

	if (pattern->order == UNIFORM)
		return xorshift64(&pattern->state) % pattern->pages;
	if (pattern->order == HOT_COLD)
		return hot_or_cold(pattern);
	if (pattern->order == ZIPF) {
		double part = (double)(xorshift64(&pattern->state) >> 11) / (double)(1ull << 53);

		page = (uint64_t)pow((double)pattern->pages + 1, part) - 1;
		return page < pattern->pages ? page : pattern->pages - 1;
	}
	page = pattern->next++;
	pattern->next = pattern->next == pattern->pages ? 0 : pattern->next;
	return page;
}

uint64_t pattern_due(const struct pattern *pattern, uint64_t ns)
{
	uint64_t seconds = ns / SECOND_NS, rest = ns % SECOND_NS;

	if (pattern->order == BURSTY)
		rest = rest < SECOND_NS / BURST_PART ? rest * BURST_PART : SECOND_NS;
	/* floor(rate * time) without overflow */
	return pattern->rate * seconds + pattern->rate * rest / SECOND_NS;
}
