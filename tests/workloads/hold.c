/*
 * A target that is awkward to trace. Usage: hold MODE, with MODE one of
 *   sleep          nothing special
 *   uffd-missing   has its own userfaultfd on its area, for missing pages
 *   uffd-wp        the same, for write-protected pages
 *   uffd-async     the same, but write protection is lifted by the kernel without a message
 *   seccomp        is killed when it calls userfaultfd(2)
 *   seccomp-errno  gets EPERM when it calls userfaultfd(2)
 */
#define _GNU_SOURCE
#include "area.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define AREA_MIB 4
#define AREA_BYTES ((uint64_t)AREA_MIB << 20)
#define AREA_PAGES (AREA_BYTES / PAGE_BYTES)
#define MOST_CHILDREN 10000
#define FEATURE_WP_UNPOPULATED (1u << 13)      /* Linux 6.4 */
#define FEATURE_WP_ASYNC (1u << 15)            /* Linux 6.7 */

static char *area;
static char *child_area;                       /* what the children write to: copied on write, as any memory */
static const char *mode;
static int uffd = -1;
static atomic_uint_fast64_t handled;           /* faults that the thread of its own userfaultfd served */

/* ---- modes ---- */

/* Serves the area's own faults, so that a test sees whether its owner still gets them. */
static void *serve_faults(void *arg)
{
	struct pollfd ready = {.fd = uffd, .events = POLLIN};
	struct uffd_msg message;

	(void)arg;
	for (;;) {
		uint64_t page;

		if (poll(&ready, 1, -1) < 0 || read(uffd, &message, sizeof(message)) != (ssize_t)sizeof(message))
			continue;
		/* Before the writer continues, so that its answer counts this fault too. */
		atomic_fetch_add(&handled, 1);
		page = message.arg.pagefault.address & ~(PAGE_BYTES - 1);
		if (!strcmp(mode, "uffd-missing")) {
			struct uffdio_zeropage zero = {.range = {page, PAGE_BYTES}};

			ioctl(uffd, UFFDIO_ZEROPAGE, &zero);
		} else {
			struct uffdio_writeprotect open_page = {.range = {page, PAGE_BYTES}};

			ioctl(uffd, UFFDIO_WRITEPROTECT, &open_page);
		}
	}
	return NULL;
}

static void start_uffd(void)
{
	bool missing = !strcmp(mode, "uffd-missing"), async = !strcmp(mode, "uffd-async");
	struct uffdio_api api = {.api = UFFD_API, .features = async ? FEATURE_WP_ASYNC | FEATURE_WP_UNPOPULATED : 0};
	struct uffdio_register registration = {
		.range = {(uintptr_t)area, AREA_BYTES},
		.mode = missing ? UFFDIO_REGISTER_MODE_MISSING : UFFDIO_REGISTER_MODE_WP,
	};
	struct uffdio_writeprotect protect = {.range = registration.range, .mode = UFFDIO_WRITEPROTECT_MODE_WP};
	pthread_t thread;

	uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK);
	/* Without privileges only faults from user mode may be handled, and there are no others here. */
	if (uffd < 0 && errno == EPERM)
		uffd = (int)syscall(SYS_userfaultfd, O_CLOEXEC | O_NONBLOCK | UFFD_USER_MODE_ONLY);
	if (uffd < 0 || ioctl(uffd, UFFDIO_API, &api))
		die("userfaultfd: %s", strerror(errno));
	if (!missing)
		memset(area, 1, AREA_BYTES);
	if (ioctl(uffd, UFFDIO_REGISTER, &registration))
		die("UFFDIO_REGISTER: %s", strerror(errno));
	if (!missing && ioctl(uffd, UFFDIO_WRITEPROTECT, &protect))
		die("UFFDIO_WRITEPROTECT: %s", strerror(errno));
	if (!async && pthread_create(&thread, NULL, serve_faults, NULL))
		die("cannot start a thread");
}

static void start_seccomp(void)
{
	uint32_t action = !strcmp(mode, "seccomp") ? SECCOMP_RET_KILL_PROCESS : SECCOMP_RET_ERRNO | EPERM;
	struct sock_filter filter[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_userfaultfd, 0, 1),
		BPF_STMT(BPF_RET | BPF_K, action),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {.len = sizeof(filter) / sizeof(*filter), .filter = filter};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program))
		die("seccomp: %s", strerror(errno));
}

static void start_mode(void)
{
	if (!strncmp(mode, "uffd-", 5))
		start_uffd();
	else if (!strncmp(mode, "seccomp", 7))
		start_seccomp();
}

static bool mode_exists(const char *text)
{
	static const char *const modes[] = {"sleep", "uffd-missing", "uffd-wp", "uffd-async", "seccomp", "seccomp-errno"};

	for (size_t i = 0; i < sizeof(modes) / sizeof(*modes); i++)
		if (!strcmp(modes[i], text))
			return true;
	return false;
}

/* ---- children ---- */

struct child_report {
	pid_t pid;
	uint32_t first, count;
};

struct family {
	uint64_t count, pages, life_ms;
	bool chain;
	int report;                            /* the pipe's writing end */
};

/* Child number `index` writes pages of its own: index * pages onwards, wrapping around in the area. */
static struct child_report child_write(const struct family *family, uint64_t index)
{
	uint64_t slots = AREA_PAGES / family->pages, first = index % slots * family->pages;
	struct child_report report = {getpid(), (uint32_t)first, (uint32_t)family->pages};

	for (uint64_t i = 0; i < family->pages; i++)
		*(volatile uint64_t *)(child_area + (first + i) * PAGE_BYTES) = index + 2;
	return report;
}

/* Chained, each child forks the next while it lives, and waits for it; otherwise hold forks them all. */
static void run_children(const struct family *family, uint64_t index)
{
	struct timespec life = {(time_t)(family->life_ms / 1000), (long)(family->life_ms % 1000) * 1000000};

	while (index < family->count) {
		pid_t pid = fork();

		if (pid < 0)
			_exit(1);
		if (pid == 0) {
			struct child_report report = child_write(family, index);

			if (write(family->report, &report, sizeof(report)) != (ssize_t)sizeof(report))
				_exit(1);
			nanosleep(&life, NULL);
			if (family->chain)
				run_children(family, index + 1);
			_exit(0);
		}
		waitpid(pid, NULL, 0);
		if (family->chain)
			return;
		index++;
	}
}

/* children COUNT PAGES [LIFE_MS] [flat|chain] */
static void do_children(const struct line *line)
{
	struct family family = {.chain = line->argc > 4 && !strcmp(line->argv[4], "chain")};
	struct child_report report;
	const char *comma = "";
	int ends[2];
	pid_t middle;

	if (!word_u64(line, 1, 1, &family.count) || !word_u64(line, 2, 1, &family.pages) ||
	    !word_u64(line, 3, 0, &family.life_ms) || family.count < 1 || family.count > MOST_CHILDREN || family.pages < 1 ||
	    family.pages > AREA_PAGES || (family.chain && family.count > 100)) {
		answer_error("children COUNT PAGES [LIFE_MS] [flat|chain], with up to %d children (chained 100), %lu pages",
			     MOST_CHILDREN, AREA_PAGES);
		return;
	}
	if (pipe2(ends, O_CLOEXEC)) {
		answer_errno("pipe");
		return;
	}
	family.report = ends[1];
	/* A process in between, so that reading the reports here never waits for a child that waits for space in the pipe. */
	middle = fork();
	if (middle == 0) {
		close(ends[0]);
		run_children(&family, 0);
		_exit(0);
	}
	close(ends[1]);
	if (middle < 0) {
		close(ends[0]);
		answer_errno("fork");
		return;
	}
	printf("{\"ok\":true,\"parent\":%d,\"children\":[", (int)middle);
	while (read(ends[0], &report, sizeof(report)) == (ssize_t)sizeof(report)) {
		printf("%s{\"pid\":%d,\"ranges\":[[%u,%u]]}", comma, (int)report.pid, report.first, report.first + report.count - 1);
		comma = ",";
	}
	close(ends[0]);
	waitpid(middle, NULL, 0);
	printf("]}");
	answer_end();
}

/* ---- commands ---- */

/* write FIRST COUNT */
static void do_write(const struct line *line)
{
	static uint64_t value = 2;
	uint64_t first, count;

	if (!word_u64(line, 1, 0, &first) || !word_u64(line, 2, 1, &count) || count < 1 || first >= AREA_PAGES ||
	    count > AREA_PAGES - first) {
		answer_error("write FIRST COUNT, within %lu pages", AREA_PAGES);
		return;
	}
	value++;
	for (uint64_t i = 0; i < count; i++)
		*(volatile uint64_t *)(area + (first + i) * PAGE_BYTES) = value;
	printf("{\"ok\":true,\"area\":\"area\",\"ranges\":[[%lu,%lu]],\"handled\":%lu}", first, first + count - 1,
	       atomic_load(&handled));
	answer_end();
}

static void do_handled(void)
{
	printf("{\"ok\":true,\"handled\":%lu}", atomic_load(&handled));
	answer_end();
}

static void greet(uint64_t execs)
{
	printf("{\"ok\":true,\"pid\":%d,\"mode\":\"%s\",\"execs\":%lu,\"uffd\":%d,", (int)getpid(), mode, execs, uffd);
	put_areas();
	printf("}");
	answer_end();
}

/* Starts the same program over under the same pid; the new image greets as the first one did. */
static void do_exec(uint64_t execs)
{
	char count[32];

	snprintf(count, sizeof(count), "%lu", execs + 1);
	execl("/proc/self/exe", "hold", mode, count, (char *)NULL);
	answer_errno("exec");
}

int main(int argc, char **argv)
{
	struct line line = {0};
	uint64_t execs = 0;

	if (argc < 2 || !mode_exists(argv[1]) || (argc > 2 && !parse_u64(argv[2], &execs)))
		die("usage: hold sleep|uffd-missing|uffd-wp|uffd-async|seccomp|seccomp-errno");
	protocol_start();
	mode = argv[1];
	area = area_need("area", "anon_private", AREA_MIB)->start;
	child_area = area_need("children", "anon_private", AREA_MIB)->start;
	start_mode();
	greet(execs);
	while (line_read(&line) && strcmp(line.argv[0], "quit")) {
		if (!strcmp(line.argv[0], "write"))
			do_write(&line);
		else if (!strcmp(line.argv[0], "handled"))
			do_handled();
		else if (!strcmp(line.argv[0], "children"))
			do_children(&line);
		else if (!strcmp(line.argv[0], "exec"))
			do_exec(execs);
		else
			answer_error("no such command: %s", line.argv[0]);
	}
	return 0;
}
