#define _GNU_SOURCE
#include "area.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static const char *const kind_name[KINDS] = {
	"anon_private", "anon_shared", "memfd", "file_private", "file_shared", "file_folios", "thp", "hugetlb",
};

/* The four classes of the tool's own output; a memfd is shared memory without a file system's file. */
static const char *const mapping_class[KINDS] = {
	"anon_private", "anon_shared", "anon_shared", "file_private", "file_shared", "file_shared", "anon_private", "anon_private",
};

static struct area areas[MAX_AREAS];
static const char *directory;

void areas_start(const char *dir)
{
	directory = dir;
}

void areas_remove_files(void)
{
	for (int i = 0; i < MAX_AREAS; i++)
		if (areas[i].in_use && areas[i].path[0])
			unlink(areas[i].path);
}

struct area *area_at(int index)
{
	return areas[index].in_use ? &areas[index] : NULL;
}

struct area *area_find(const char *name)
{
	for (int i = 0; i < MAX_AREAS; i++)
		if (areas[i].in_use && !strcmp(areas[i].name, name))
			return &areas[i];
	return NULL;
}

static struct area *slot(const char *name)
{
	if (area_find(name)) {
		errno = EEXIST;
		return NULL;
	}
	if (strlen(name) >= NAME_BYTES || strchr(name, '/') || strchr(name, '"')) {
		errno = EINVAL;
		return NULL;
	}
	for (int i = 0; i < MAX_AREAS; i++) {
		if (areas[i].in_use)
			continue;
		memset(&areas[i], 0, sizeof(areas[i]));
		strcpy(areas[i].name, name);
		areas[i].fd = -1;
		return &areas[i];
	}
	errno = ENOSPC;
	return NULL;
}

/*
 * Address space for `bytes` with a PROT_NONE page on each side: without them the kernel could merge an
 * area with a neighbour (a malloc arena, a stack) and a test could not attribute the pages.
 * With `address` exactly there, else anywhere that is `skew` bytes past a multiple of 2 MiB.
 */
static char *reserve(size_t bytes, uint64_t address, uint64_t skew)
{
	int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
	size_t with_guards = bytes + 2 * PAGE_BYTES, slack = address ? 0 : 2 * HUGE_BYTES;
	void *hint = address ? (void *)(uintptr_t)(address - PAGE_BYTES) : NULL;
	char *base, *start;

	if (address)
		flags |= MAP_FIXED_NOREPLACE;
	base = mmap(hint, with_guards + slack, PROT_NONE, flags, -1, 0);
	if (base == MAP_FAILED)
		return NULL;
	if (address)
		return base + PAGE_BYTES;
	start = (char *)(((uintptr_t)base + PAGE_BYTES + HUGE_BYTES - 1) / HUGE_BYTES * HUGE_BYTES) + skew;
	if (start - PAGE_BYTES > base)
		munmap(base, (size_t)(start - PAGE_BYTES - base));
	munmap(start + bytes + PAGE_BYTES, (size_t)(base + with_guards + slack - (start + bytes + PAGE_BYTES)));
	return start;
}

static void release(char *start, size_t bytes)
{
	munmap(start - PAGE_BYTES, bytes + 2 * PAGE_BYTES);
}

/*
 * Non-zero contents, and clean: pages still waiting for write-back would count as dirty without a write. The
 * page cache gets folios of the size of a write: of one page, so that one fault maps one page, or of many.
 */
static bool fill_file(int fd, enum kind kind, uint64_t from, uint64_t bytes)
{
	static uint64_t block[8192];

	for (uint64_t offset = from; offset < bytes; offset += sizeof(block)) {
		for (size_t i = 0; i < sizeof(block) / sizeof(*block); i++)
			block[i] = mix64(offset + i * 8 + 1) | 1;
		for (size_t done = 0, step = kind == FILE_FOLIOS ? sizeof(block) : PAGE_BYTES; done < sizeof(block); done += step)
			if (pwrite(fd, (char *)block + done, step, (off_t)(offset + done)) != (ssize_t)step)
				return false;
	}
	return fsync(fd) == 0;
}

static int open_backing(struct area *area, uint64_t bytes)
{
	int fd;

	if (area->kind == MEMFD) {
		fd = memfd_create(area->name, MFD_CLOEXEC);
		if (fd >= 0 && ftruncate(fd, (off_t)bytes))
			return -1;
		return fd;
	}
	if (!directory) {
		errno = ENOENT;
		return -1;
	}
	if (snprintf(area->path, sizeof(area->path), "%s/%s.bin", directory, area->name) >= (int)sizeof(area->path)) {
		errno = ENAMETOOLONG;
		return -1;
	}
	fd = open(area->path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd >= 0 && !fill_file(fd, area->kind, 0, bytes))
		return -1;
	return fd;
}

static bool find_kind(const char *name, enum kind *kind)
{
	for (int k = 0; k < KINDS; k++) {
		if (!strcmp(kind_name[k], name)) {
			*kind = (enum kind)k;
			return true;
		}
	}
	errno = EINVAL;
	return false;
}

static int map_flags(enum kind kind)
{
	int flags = kind == ANON_SHARED || kind == MEMFD || kind == FILE_SHARED || kind == FILE_FOLIOS ? MAP_SHARED : MAP_PRIVATE;

	if (kind == ANON_PRIVATE || kind == ANON_SHARED || kind == THP || kind == HUGETLB)
		flags |= MAP_ANONYMOUS;
	if (kind == HUGETLB)
		flags |= MAP_HUGETLB;
	return flags;
}

/* What a mapping that failed had opened already; keeps errno. */
static struct area *abandon(struct area *area)
{
	int error = errno;

	if (area->fd >= 0)
		close(area->fd);
	if (area->path[0])
		unlink(area->path);
	errno = error;
	return NULL;
}

struct area *area_map(const char *name, const char *kind, uint64_t mib, uint64_t address, const char **what)
{
	struct area *area = slot(name);
	uint64_t bytes = mib << 20;
	char *start;
	void *got;

	*what = "name";
	if (!area)
		return NULL;
	*what = "kind";
	if (!find_kind(kind, &area->kind))
		return NULL;
	*what = "size";
	errno = EINVAL;
	if (mib < 1 || mib > 1 << 20)
		return NULL;
	*what = "backing file";
	if (area->kind == MEMFD || area->kind == FILE_PRIVATE || area->kind == FILE_SHARED || area->kind == FILE_FOLIOS) {
		area->fd = open_backing(area, bytes);
		if (area->fd < 0)
			return NULL;
	}
	*what = "address";
	start = reserve(bytes, address, 0);
	if (!start)
		return abandon(area);
	*what = "mmap";
	got = mmap(start, bytes, PROT_READ | PROT_WRITE, map_flags(area->kind) | MAP_FIXED, area->fd, 0);
	if (got == MAP_FAILED) {
		int error = errno;

		release(start, bytes);
		errno = error;
		return abandon(area);
	}
	/* One page, one fault: that is what makes the list of written pages exact. Fails without THP: fine. */
	if (area->kind != THP && area->kind != HUGETLB)
		madvise(start, bytes, MADV_NOHUGEPAGE);
	else if (area->kind == THP)
		madvise(start, bytes, MADV_HUGEPAGE);
	area->start = start;
	area->pages = (uint32_t)(bytes / PAGE_BYTES);
	area->readonly = must_alloc(area->pages);
	area->in_use = true;
	return area;
}

struct area *area_alias(const char *name, const struct area *of, const char **what)
{
	struct area *area = slot(name);
	size_t bytes = of->pages * PAGE_BYTES;
	char *start;

	*what = "name";
	if (!area)
		return NULL;
	*what = "only a shared area can have an alias";
	errno = EINVAL;
	if (!(map_flags(of->kind) & MAP_SHARED))
		return NULL;
	*what = "address";
	start = reserve(bytes, 0, 0);
	if (!start)
		return NULL;
	/* An old size of 0 means: map the same shared pages once more, even those that have no descriptor. */
	*what = "mremap";
	if (mremap(of->start, 0, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED) {
		release(start, bytes);
		return NULL;
	}
	area->kind = of->kind;
	area->start = start;
	area->pages = of->pages;
	area->readonly = must_alloc(area->pages);
	area->in_use = true;
	return area;
}

bool area_move(struct area *area, uint64_t mib, uint64_t skew_pages, const char **what)
{
	size_t old_bytes = area->pages * PAGE_BYTES, bytes = mib ? mib << 20 : old_bytes;
	uint64_t skew = ((uintptr_t)area->start + skew_pages * PAGE_BYTES) % HUGE_BYTES;
	char *start;

	*what = "this area cannot grow";
	errno = EINVAL;
	if (bytes > old_bytes && (area->kind == ANON_SHARED || (area->kind != ANON_PRIVATE && area->kind != THP && area->fd < 0)))
		return false;
	*what = "growing the file";
	if (bytes > old_bytes && area->kind == MEMFD && ftruncate(area->fd, (off_t)bytes))
		return false;
	if (bytes > old_bytes && area->path[0] && !fill_file(area->fd, area->kind, old_bytes, bytes))
		return false;
	*what = "address";
	start = reserve(bytes, 0, skew);
	if (!start)
		return false;
	*what = "mremap";
	if (mremap(area->start, old_bytes, bytes, MREMAP_MAYMOVE | MREMAP_FIXED, start) == MAP_FAILED) {
		release(start, bytes);
		return false;
	}
	release(area->start, old_bytes);
	area->readonly = realloc(area->readonly, bytes / PAGE_BYTES);
	if (!area->readonly)
		die("out of memory");
	if (bytes > old_bytes)
		memset(area->readonly + area->pages, 0, bytes / PAGE_BYTES - area->pages);
	area->start = start;
	area->pages = (uint32_t)(bytes / PAGE_BYTES);
	return true;
}

bool area_protect(struct area *area, bool readonly, uint32_t first, uint32_t count)
{
	int prot = readonly ? PROT_READ : PROT_READ | PROT_WRITE;

	if (mprotect(area->start + first * PAGE_BYTES, count * PAGE_BYTES, prot))
		return false;
	memset(area->readonly + first, readonly, count);
	return true;
}

void area_unmap(struct area *area)
{
	release(area->start, area->pages * PAGE_BYTES);
	if (area->fd >= 0)
		close(area->fd);
	if (area->path[0])
		unlink(area->path);
	free(area->readonly);
	area->in_use = false;
}

void put_area(const struct area *area)
{
	uintptr_t start = (uintptr_t)area->start;

	printf("{\"name\":\"%s\",\"kind\":\"%s\",\"mapping_class\":\"%s\",\"start\":%lu,\"end\":%lu,\"fd\":%d,\"path\":",
	       area->name, kind_name[area->kind], mapping_class[area->kind], start, start + area->pages * PAGE_BYTES, area->fd);
	put_string(area->path);
	printf("}");
}

void put_areas(void)
{
	const char *comma = "";

	printf("\"areas\":[");
	for (int i = 0; i < MAX_AREAS; i++) {
		if (!areas[i].in_use)
			continue;
		printf("%s", comma);
		put_area(&areas[i]);
		comma = ",";
	}
	printf("]");
}

struct area *area_need(const char *name, const char *kind, uint64_t mib)
{
	const char *what = "";
	struct area *area = area_map(name, kind, mib, 0, &what);

	if (!area)
		die("area %s: %s: %s", name, what, strerror(errno));
	return area;
}
