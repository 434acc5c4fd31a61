/* torture's changes to its mappings, and its children. */
#define _GNU_SOURCE
#include "torture.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#define EXEC_BYTES (2UL << 20)

uint64_t churned[CHURNS];
const char *const churn_name[CHURNS] = {"remap", "move", "protect", "cover", "dontneed", "free",
					"sync", "thread", "fork", "exec", "end"};

/* ---- mappings ---- */

void spot_map(struct spot *spot)
{
	spot->area = area_need(spot->name, spot->kind, spot->mib);
	if (spot->shared && !spot->steady)
		madvise(spot->area->start, spot->area->pages * PAGE_BYTES, MADV_DONTFORK);
}

static void map_anew(struct spot *spot)
{
	area_unmap(spot->area);
	spot_map(spot);
}

/* Mappings that were split by mprotect or covered do not move as one: then it is mapped anew. */
static void move(struct spot *spot, uint64_t random)
{
	const char *what;

	if (!area_move(spot->area, 0, random & 1 ? 0 : (random >> 1) % 512, &what))
		map_anew(spot);
}

/* Fresh pages in the middle of a private area. */
static void cover(struct spot *spot, uint32_t first, uint32_t count)
{
	char *start = spot->area->start + first * PAGE_BYTES;

	if (mmap(start, count * PAGE_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) ==
	    MAP_FAILED)
		die("cover: %s", strerror(errno));
	madvise(start, count * PAGE_BYTES, MADV_NOHUGEPAGE);
	memset(spot->area->readonly + first, 0, count);
}

/* Changes under the lock of a spot: no thread writes there meanwhile. */
static bool change_locked(struct spot *spot, enum churn what, uint64_t random, uint32_t first, uint32_t count)
{
	bool can = !spot->steady && (what != COVER || spot->area->kind == ANON_PRIVATE);

	if (!can)
		return false;
	pthread_rwlock_wrlock(&spot->lock);
	if (what == REMAP)
		map_anew(spot);
	else if (what == MOVE)
		move(spot, random);
	else if (what == COVER)
		cover(spot, first, count);
	else if (!area_protect(spot->area, random & 1, first, count))
		die("mprotect: %s", strerror(errno));
	pthread_rwlock_unlock(&spot->lock);
	return true;
}

/* Changes that race with the writers. */
static bool change_open(struct spot *spot, enum churn what, uint32_t first, uint32_t count)
{
	char *start = spot->area->start + first * PAGE_BYTES;
	size_t bytes = count * PAGE_BYTES;

	if (what == DONTNEED)
		return !spot->kept && madvise(start, bytes, MADV_DONTNEED) == 0;
	if (what == FREE)
		return !spot->shared && spot->area->kind != FILE_PRIVATE && madvise(start, bytes, MADV_FREE) == 0;
	/* The kernel protects the pages that it writes back. */
	return spot->area->kind == FILE_SHARED &&
	       sync_file_range(spot->area->fd, (off_t)(first * PAGE_BYTES), (off_t)bytes,
			       SYNC_FILE_RANGE_WRITE | SYNC_FILE_RANGE_WAIT_AFTER) == 0;
}

static void *short_thread(void *arg)
{
	burst(arg);
	return NULL;
}

static bool thread_comes_and_goes(uint64_t seed)
{
	static struct writer writer;
	pthread_t thread;

	writer_start(&writer, seed);
	if (pthread_create(&thread, NULL, short_thread, &writer))
		die("cannot start a thread");
	pthread_join(thread, NULL);
	return true;
}

/* ---- children ---- */

static void child_bursts(struct writer *writer, int slot, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++) {
		rest_point(&control->child[slot].parked);
		burst(writer);
		atomic_fetch_add(&control->child[slot].writes, atomic_exchange(&writer->writes, 0));
		if (xorshift64(&writer->random) % 2 == 0)
			nap(xorshift64(&writer->random) % 2000);
	}
}

static _Noreturn void run_child(int slot, uint64_t seed, bool then_exec)
{
	static struct writer writer;
	char fd[16], number[16], again[32];

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	writer_start(&writer, seed);
	writer.alone = true;
	writer.slot = slot;
	/* Some end within a round, some live for many. */
	child_bursts(&writer, slot, xorshift64(&writer.random) % (seed & 1 ? 8 : 2000));
	if (then_exec) {
		snprintf(fd, sizeof(fd), "%d", control_fd);
		snprintf(number, sizeof(number), "%d", slot);
		snprintf(again, sizeof(again), "%lu", seed >> 1);
		execl("/proc/self/exe", "torture", "child", fd, number, again, (char *)NULL);
	}
	_exit(0);
}

_Noreturn void run_after_exec(int slot, uint64_t seed)
{
	struct writer writer = {0};
	char *memory = NULL;

	prctl(PR_SET_PDEATHSIG, SIGKILL);
	writer_start(&writer, seed);
	for (uint64_t i = 0; i < 100 || !(seed & 1); i++) {
		uint64_t random = xorshift64(&writer.random);

		rest_point(&control->child[slot].parked);
		if (!memory || random % 64 == 0) {
			if (memory)
				munmap(memory, EXEC_BYTES);
			memory = mmap(NULL, EXEC_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
			if (memory == MAP_FAILED)
				_exit(1);
		}
		for (uint64_t n = random % 32; n; n--) {
			uint64_t at = xorshift64(&writer.random) % (EXEC_BYTES / 8);

			((volatile uint64_t *)memory)[at] = ++writer.value;
		}
		atomic_fetch_add(&control->child[slot].writes, random % 32);
		nap(random % 2000);
	}
	_exit(0);
}

static bool child_start(uint64_t seed, bool then_exec)
{
	for (int slot = 0; slot < MAX_CHILDREN; slot++) {
		pid_t pid;

		if (atomic_load(&control->child[slot].pid))
			continue;
		atomic_store(&control->child[slot].armed, false);
		pid = fork();
		if (pid == 0)
			run_child(slot, seed, then_exec);
		if (pid < 0)
			die("fork: %s", strerror(errno));
		atomic_store(&control->child[slot].pid, pid);
		return true;
	}
	return false;
}

static bool reap(int slot, int flags)
{
	int pid = atomic_load(&control->child[slot].pid), status;

	if (!pid || waitpid(pid, &status, flags) != pid)
		return false;
	if (WIFEXITED(status) ? WEXITSTATUS(status) : WTERMSIG(status) != SIGKILL)
		die("child %d ended with status %#x", pid, (unsigned)status);
	atomic_store(&control->child[slot].pid, 0);
	return true;
}

static bool child_end(int slot)
{
	int pid = atomic_load(&control->child[slot].pid);

	return pid && (reap(slot, WNOHANG) || (!kill(pid, SIGKILL) && reap(slot, 0)));
}

void children_end(void)
{
	for (int slot = 0; slot < MAX_CHILDREN; slot++)
		child_end(slot);
}

void children_settle(unsigned rest)
{
	for (int slot = 0; slot < MAX_CHILDREN; slot++)
		while (atomic_load(&control->child[slot].pid) && atomic_load(&control->child[slot].parked) != rest &&
		       !reap(slot, WNOHANG))
			nap(200);
}

/* ---- one random change ---- */

void churn_once(struct writer *self)
{
	uint64_t random = xorshift64(&self->random), more = xorshift64(&self->random);
	enum churn what = (enum churn)(random % CHURNS);
	struct spot *spot = &spots[(random >> 8) % (uint64_t)spot_count];
	uint32_t first = (uint32_t)(more >> 32) % spot->area->pages, left = spot->area->pages - first;
	uint32_t count = 1 + (uint32_t)more % (left < 128 ? left : 128);
	bool done = false;

	for (int slot = 0; slot < MAX_CHILDREN; slot++)
		reap(slot, WNOHANG);
	if (what <= COVER)
		done = change_locked(spot, what, more >> 20, first, count);
	else if (what <= SYNC)
		done = change_open(spot, what, first, count);
	else if (what == THREAD)
		done = thread_comes_and_goes(more);
	else if (what == FORK || what == EXEC)
		done = (random >> 16) % 4 == 0 && child_start(more, what == EXEC);
	else
		done = child_end((int)((random >> 16) % MAX_CHILDREN));
	churned[what] += done;
}
