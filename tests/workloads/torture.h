/* What the threads of torture share: the spots they write to, and how all of them come to rest. */
#ifndef WORKLOADS_TORTURE_H
#define WORKLOADS_TORTURE_H

#include "area.h"

#define MAX_CHILDREN 4
#define MAX_SPOTS 32

/* In a memfd, so that a child has it after an exec, too. */
struct control {
	atomic_uint run;                       /* odd: go; even: rest. Its value is the number of the rest. */
	struct {
		atomic_int pid;
		atomic_uint parked;            /* the number of the rest it keeps */
		atomic_bool armed;             /* its tracer has it under control: see burst() */
		atomic_ulong writes;
	} child[MAX_CHILDREN];
};

/* A place for an area. Steady ones keep their address; the others are mapped, unmapped, moved and changed. */
struct spot {
	pthread_rwlock_t lock;                 /* read: to write into it; write: to map, move or protect it */
	struct area *area;
	char name[NAME_BYTES];
	const char *kind;
	uint64_t mib;
	bool steady, shared;
	/*
	 * Shared memory outlives the page tables of the process that wrote it, and what the scan would have seen is lost
	 * with them. That is the only trace of a write with userfaultfd in a mapping that mremap moved, until the round ends;
	 * and of a fault that slept over a boundary, as those on files may. So a kept spot is not dropped, and no process
	 * that may end before its parent writes there.
	 */
	bool kept;
};

/* One stream of random writes: a thread's, or a child's. */
struct writer {
	uint64_t random, value;                /* every value is written once only */
	atomic_uint parked;
	atomic_ulong writes, reads;
	bool alone;                            /* in a child: no other thread changes its mappings, or locks */
	int slot;                              /* of a child */
};

enum churn { REMAP, MOVE, PROTECT, COVER, DONTNEED, FREE, SYNC, THREAD, FORK, EXEC, END, CHURNS };

extern struct control *control;
extern int control_fd, source_fd;
extern struct spot spots[MAX_SPOTS];
extern int spot_count;
extern uint64_t kernel_writes;                 /* process_vm_writev writes: 0 nowhere, 1 to private memory, 2 anywhere */
extern uint64_t churned[CHURNS];
extern const char *const churn_name[CHURNS];

void writer_start(struct writer *writer, uint64_t seed);
void burst(struct writer *writer);             /* some writes, all to one spot */
void nap(uint64_t us);
void rest_point(atomic_uint *parked);          /* returns at once, or when the rest is over */

void spot_map(struct spot *spot);
void churn_once(struct writer *self);          /* one change to the mappings, or one child more or less */
void children_settle(unsigned rest);           /* waits until each one rests, or has ended and is reaped */
void children_end(void);
_Noreturn void run_after_exec(int slot, uint64_t seed);

#endif
