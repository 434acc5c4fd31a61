/* Commands that change how an area is mapped, and the words that commands on areas have in common. */
#ifndef WORKLOADS_LAYOUT_H
#define WORKLOADS_LAYOUT_H

#include "area.h"

/* The area named at argv[index]; NULL after an error answer. */
struct area *wanted_area(const struct line *line, int index);

/* FIRST COUNT at argv[index]; COUNT 0 or none: up to the end of the area. False after an error answer. */
bool page_span(const struct line *line, int index, const struct area *area, uint32_t *first, uint32_t *count);

/*
 * Does and answers the command if it is dontneed, advise, mprotect, mapnew, alias, unmap, remap, msync or
 * digest; false if it is none of these.
 */
bool layout_command(const struct line *line, bool in_child);

#endif
