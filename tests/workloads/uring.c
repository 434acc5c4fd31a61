/*
 * Has the kernel write into its area through io_uring. Usage: uring DIR
 *   register FIRST COUNT            these pages are a registered buffer: pinned until `unregister`
 *   read FIRST COUNT plain|async|fixed   reads a file into the pages; async: by a worker of the kernel;
 *                                   fixed: into the registered buffer
 *   write FIRST COUNT               the processor writes a word of each page
 */
#define _GNU_SOURCE
#include "area.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#define AREA_MIB 4
#define SOURCE_PAGES 512U
#define ENTRIES 8

static struct area *area;
static int source_fd = -1, ring_fd = -1;
static unsigned *sq_tail, *sq_mask, *sq_array, *cq_head, *cq_tail, *cq_mask;
static struct io_uring_sqe *sqes;
static struct io_uring_cqe *cqes;
static uint64_t command;

static void make_source(const char *directory)
{
	char path[4096];
	uint64_t *block = must_alloc(SOURCE_PAGES * PAGE_BYTES);
	ssize_t bytes = (ssize_t)(SOURCE_PAGES * PAGE_BYTES);

	for (size_t i = 0; i < SOURCE_PAGES * PAGE_BYTES / sizeof(*block); i++)
		block[i] = mix64(i + 0xf11e) | 1;
	snprintf(path, sizeof(path), "%s/uring-source.%d", directory, (int)getpid());
	source_fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (source_fd < 0 || write(source_fd, block, (size_t)bytes) != bytes)
		die("source file: %s", strerror(errno));
	unlink(path);
	free(block);
}

static bool make_ring(void)
{
	struct io_uring_params p = {0};
	size_t sq_bytes, cq_bytes;
	char *rings;

	ring_fd = (int)syscall(SYS_io_uring_setup, ENTRIES, &p);
	if (ring_fd < 0)
		return false;
	sq_bytes = p.sq_off.array + p.sq_entries * sizeof(unsigned);
	cq_bytes = p.cq_off.cqes + p.cq_entries * sizeof(struct io_uring_cqe);
	/* Since Linux 5.4 both rings are one mapping. */
	rings = mmap(NULL, sq_bytes > cq_bytes ? sq_bytes : cq_bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
		     ring_fd, IORING_OFF_SQ_RING);
	sqes = mmap(NULL, p.sq_entries * sizeof(*sqes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring_fd,
		    IORING_OFF_SQES);
	if (rings == MAP_FAILED || sqes == MAP_FAILED)
		return false;
	sq_tail = (unsigned *)(rings + p.sq_off.tail);
	sq_mask = (unsigned *)(rings + p.sq_off.ring_mask);
	sq_array = (unsigned *)(rings + p.sq_off.array);
	cq_head = (unsigned *)(rings + p.cq_off.head);
	cq_tail = (unsigned *)(rings + p.cq_off.tail);
	cq_mask = (unsigned *)(rings + p.cq_off.ring_mask);
	cqes = (struct io_uring_cqe *)(rings + p.cq_off.cqes);
	return true;
}

/* Runs one request to its end; its result, or minus errno. */
static int run_one(const struct io_uring_sqe *request)
{
	unsigned tail = *sq_tail, at = tail & *sq_mask;
	int result;

	sqes[at] = *request;
	sq_array[at] = at;
	__atomic_store_n(sq_tail, tail + 1, __ATOMIC_RELEASE);
	while (syscall(SYS_io_uring_enter, ring_fd, 1, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0)
		if (errno != EINTR)
			return -errno;
	while (__atomic_load_n(cq_tail, __ATOMIC_ACQUIRE) == *cq_head)
		if (syscall(SYS_io_uring_enter, ring_fd, 0, 1, IORING_ENTER_GETEVENTS, NULL, 0) < 0 && errno != EINTR)
			return -errno;
	result = cqes[*cq_head & *cq_mask].res;
	__atomic_store_n(cq_head, *cq_head + 1, __ATOMIC_RELEASE);
	return result;
}

static bool span(const struct line *line, uint64_t *first, uint64_t *count)
{
	if (word_u64(line, 1, 0, first) && word_u64(line, 2, 1, count) && *count >= 1 && *count <= SOURCE_PAGES / 2 &&
	    *first < area->pages && *count <= area->pages - *first)
		return true;
	answer_error("FIRST COUNT, within %u pages and at most %u", area->pages, SOURCE_PAGES / 2);
	return false;
}

static void answer_span(uint64_t first, uint64_t count)
{
	printf("{\"ok\":true,\"area\":\"a\",\"ranges\":[[%lu,%lu]]}", first, first + count - 1);
	answer_end();
}

static void do_register(uint64_t first, uint64_t count)
{
	struct iovec buffer = {area->start + first * PAGE_BYTES, count * PAGE_BYTES};

	if (syscall(SYS_io_uring_register, ring_fd, IORING_REGISTER_BUFFERS, &buffer, 1) < 0)
		answer_errno("IORING_REGISTER_BUFFERS");
	else
		answer_span(first, count);
}

static void do_read(const char *how, uint64_t first, uint64_t count)
{
	/* A different part of the source each time, so that the pages change. */
	uint64_t offset = (command * 37 + first) % (SOURCE_PAGES / 2) * PAGE_BYTES;
	struct io_uring_sqe request = {
		.opcode = strcmp(how, "fixed") ? IORING_OP_READ : IORING_OP_READ_FIXED,
		.flags = strcmp(how, "async") ? 0 : IOSQE_ASYNC,
		.fd = source_fd,
		.addr = (uintptr_t)(area->start + first * PAGE_BYTES),
		.len = (unsigned)(count * PAGE_BYTES),
		.off = offset,
	};
	int got = run_one(&request);

	if (got == (int)(count * PAGE_BYTES))
		answer_span(first, count);
	else
		answer_error("read: %s", got < 0 ? strerror(-got) : "short");
}

static void run(const struct line *line)
{
	const char *verb = line->argv[0];
	uint64_t first, count;

	command++;
	if (!strcmp(verb, "unregister")) {
		if (syscall(SYS_io_uring_register, ring_fd, IORING_UNREGISTER_BUFFERS, NULL, 0) < 0)
			answer_errno("IORING_UNREGISTER_BUFFERS");
		else
			answer_span(0, area->pages);
		return;
	}
	if (!span(line, &first, &count))
		return;
	if (!strcmp(verb, "register")) {
		do_register(first, count);
	} else if (!strcmp(verb, "read")) {
		do_read(line->argc > 3 ? line->argv[3] : "plain", first, count);
	} else if (!strcmp(verb, "write")) {
		for (uint64_t i = first; i < first + count; i++)
			*(volatile uint64_t *)(area->start + i * PAGE_BYTES) = command << 32 | i | 1;
		answer_span(first, count);
	} else {
		answer_error("no such command: %s", verb);
	}
}

int main(int argc, char **argv)
{
	struct line line = {0};
	bool ring;

	if (argc != 2)
		die("usage: uring DIR");
	protocol_start();
	make_source(argv[1]);
	area = area_need("a", "anon_private", AREA_MIB);
	ring = make_ring();
	printf("{\"ok\":true,\"pid\":%d,\"ring\":%s,\"why\":", (int)getpid(), ring ? "true" : "false");
	put_string(ring ? "" : strerror(errno));
	printf(",");
	put_areas();
	printf("}");
	answer_end();
	while (line_read(&line) && strcmp(line.argv[0], "quit"))
		run(&line);
	return 0;
}
