/* In which order, and when, the writer writes pages: patterns whose write curve is known in closed form. */
#ifndef WORKLOADS_PATTERN_H
#define WORKLOADS_PATTERN_H

#include "common.h"

#define SECOND_NS 1000000000u
#define HOT_PART 10                            /* a tenth of the pages is hot */
#define COLD_WRITES_PART 10                    /* a tenth of the writes goes to the others */
/* zipf: page i, from 0, gets log((i + 2) / (i + 1)) / log(pages + 1) of the writes, nearly as 1 / (i + 1) */
#define BURST_PART 4                           /* bursts fill the first quarter of each second */

enum order { CYCLIC, UNIFORM, HOT_COLD, BURSTY, ZIPF, ORDERS };

struct pattern {
	enum order order;
	uint64_t pages, rate;                  /* pages/s; on average, when bursty */
	uint64_t state, next;
};

bool order_find(const char *name, enum order *order);
const char *order_name(enum order order);
void pattern_start(struct pattern *pattern, uint64_t seed);
uint64_t pattern_page(struct pattern *pattern);  /* the next page to write */
/* How many writes there are in the first `ns`: rate x seconds exactly after whole seconds. */
uint64_t pattern_due(const struct pattern *pattern, uint64_t ns);

#endif
