/* Which pages a command touches, in what order, by which thread, and how. */
#ifndef WORKLOADS_TOUCH_H
#define WORKLOADS_TOUCH_H

#include "area.h"

enum touch { TOUCH_WRITE, TOUCH_READ, TOUCH_KERNEL, TOUCH_DIRECT };

struct plan {
	struct pages pages;                    /* in the order of touching; the caller frees pages.page */
	bool collide;                          /* every thread touches every page, all at the same time */
};

/*
 * pattern: [collide:]all | stride:N | random | range:FIRST, or collide alone. A count of 0 means as many
 * as the pattern gives. False, after an error answer, where it makes no sense for the area.
 */
bool plan_make(struct plan *plan, const struct area *area, const char *pattern, uint64_t seed, uint64_t count);

/* Makes the file that kernel touches read from, already unlinked. */
void touch_start(const char *directory);

/* In a forked child: its values differ from the parent's, which shares the count of commands. */
void touch_in_child(void);

/*
 * Touches the plan's pages with `threads` workers of the pool, or on the calling thread where pool is
 * NULL, and prints the answer line. Refuses a write that would hit a read-only page.
 */
void touch_run(struct pool *pool, struct area *area, struct plan *plan, enum touch how, int threads);

/* One page, on the calling thread: for threads that live for one write. */
void touch_page(struct area *area, uint32_t page);

#endif
