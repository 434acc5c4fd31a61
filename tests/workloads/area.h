/* Named memory areas of every mapping class, each alone between two guard pages. */
#ifndef WORKLOADS_AREA_H
#define WORKLOADS_AREA_H

#include "common.h"

#define MAX_AREAS 64
#define NAME_BYTES 32

enum kind { ANON_PRIVATE, ANON_SHARED, MEMFD, FILE_PRIVATE, FILE_SHARED, FILE_FOLIOS, THP, HUGETLB, KINDS };

struct area {
	char name[NAME_BYTES];
	enum kind kind;
	char *start;
	uint32_t pages;
	int fd;                                /* -1 without an open file */
	char path[512];                        /* "" where it has no file */
	uint8_t *readonly;                     /* one a page, as mprotect left it */
	bool in_use;
};

/* Files of file areas are made in here, and removed again by areas_remove_files. */
void areas_start(const char *directory);
void areas_remove_files(void);

struct area *area_at(int index);               /* NULL where the slot is empty */
struct area *area_find(const char *name);

/* Each returns the area, or NULL with errno and, through *what, the step that failed. */
struct area *area_map(const char *name, const char *kind, uint64_t mib, uint64_t address, const char **what);
struct area *area_alias(const char *name, const struct area *of, const char **what);
bool area_move(struct area *area, uint64_t mib, uint64_t skew_pages, const char **what);
bool area_protect(struct area *area, bool readonly, uint32_t first, uint32_t count);
void area_unmap(struct area *area);
void put_area(const struct area *area);        /* as JSON */
void put_areas(void);                          /* "areas":[...] of all */

/* For the areas that a program cannot do without: dies where area_map fails. */
struct area *area_need(const char *name, const char *kind, uint64_t mib);


#endif
