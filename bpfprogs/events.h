/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The ABI between bpfprogs/ and collector/bpf/abi.py: keys and values of maps and records
 * of the ring. tests/unit compares both sides, field by field.
 *
 * space: an address space. The low 22 bits are the thread group's id (the kernel's
 *        largest pid is 2^22 - 1), the 6 above count its execs, so that memory from
 *        before an exec is never confused with memory from after it.
 */
#ifndef REDIRTY_EVENTS_H
#define REDIRTY_EVENTS_H

#define RD_SPACE_TGID_BITS 22
#define RD_REGION_BITS 36 /* in the key of a bitmap; a region is 2 MiB, so addresses of 57 bits fit */
#define RD_REGION_SHIFT 21
#define RD_NEAR 4096
#define RD_PROBES 64
#define RD_HASH_FACTOR (0x9E3779B97F4A7C15ULL) /* 2^64 / the golden ratio: spreads adjacent keys evenly */
#define RD_CLOCK_EACH 512 /* the first pages of a round that read the clock each; then one in RD_CLOCK_EVERY does */
#define RD_CLOCK_EVERY 8
#define RD_ARM_WRITES 32768 /* room of an epoch's log of writes around its arm */
#define RD_ARM_SLOT_SHIFT 48
#define RD_HIST 512
#define RD_HIST_FIRST_OCTAVE 10 /* slot 0: less than 2^10 ns after the arm */
#define RD_HIST_PER_OCTAVE 16
#define RD_TLB_REASONS 8
#define RD_RANGES 4096
#define RD_CHOSEN 64

enum rd_kind {
	RD_WRITE_FAULTS = 0,  /* every write fault, of which the next ones are a share. With tracepoints
				 the collector fills it in: each fault is one of the next two. */
	RD_FIRST_TOUCH = 1,   /* no page was present */
	RD_WRITE_PROTECT = 2, /* a page was present, not writable: armed, COW, or shared and clean */
	RD_COW = 3,           /* the page was copied */
	RD_MKWRITE = 4,       /* the file system was notified (page_mkwrite) */
	RD_HUGE = 5,          /* a huge page was written or created */
	RD_KINDS = 8,
};

enum rd_tlb_reason {
	/* 0..5: the kernel's enum tlb_flush_reason, as the tracepoint reports it */
	RD_TLB_MM_RANGE = 6, /* flush_tlb_mm_range, timed */
	RD_TLB_BATCH = 7,    /* arch_tlbbatch_flush, timed */
};

struct rd_bounds { /* addresses, end exclusive */
	__u64 start;
	__u64 end;
};

struct rd_config {
	__u64 epoch;        /* the lowest bit selects the set of maps that is written now */
	__u64 follow_fork;  /* 1: children of a target are targets */
	__u64 arm_pid;      /* the collector's thread group: its flushes of a target's memory are caused by arming */
	/*
	 * By tgid % RD_NEAR. 0: not a target, a quick answer for the rest of the machine. With the
	 * highest bit set: a copy of one target, so that the hash need not be looked up. Otherwise the
	 * hash is looked up, and this is a number used only once, so that a copy is stored only if no
	 * target has changed since before the lookup. Whoever changes a target writes such a number
	 * afterwards: the kernel side 1, 2, 3 ..., the collector numbers with bit 62 set.
	 */
	__u64 near[RD_NEAR];
	__u64 changes; /* the last such number of the kernel side */
	__u64 used[2]; /* rows in use in each epoch's table; past RD_REGIONS they are not listed */
	__u64 arming;  /* 1 + the slot of the target that the collector is arming; 0: none */
	__u64 arm_writes[2]; /* entries taken in each epoch's log of writes around its arm, or refused */
	/* With RD_PART only these ranges of a target are recorded; ranges are only added. */
	__u64 chosen_count;
	struct rd_bounds chosen[RD_CHOSEN];
};

struct rd_target {
	__u32 space;
	__u32 slot; /* in stats; 0 is shared by those that have none yet */
};

struct rd_bits {
#ifdef RD_NO_ATOMIC_OR
	__u8 pages[512]; /* a byte for each page: see compat.h */
#else
	__u64 words[8]; /* a bit for each page of a region */
#endif
};

/*
 * A row of an epoch's table of bitmaps (not with RD_NO_ATOMIC_OR: compare-and-swap came to BPF
 * together with the atomic OR). Open addressing, linear probing, at most half full; no row is freed
 * during its epoch. It is not a BPF hash map because a lookup there is a call, and calls are the
 * cost of a fault; and because the collector reads and empties it in place.
 */
struct rd_row {
	__u64 key; /* 0: free */
	struct rd_bits bits;
};

/* A range of pages that mprotect made writable without a fault (kp_change_protection); the value is its end. */
struct rd_range {
	__u64 start;
	__u32 space;
	__u32 epoch;
};

struct rd_tlb {
	__u64 flushes;
	__u64 pages;        /* of the flushes of a range */
	__u64 full_flushes; /* full flushes: requested, or because the range was too long */
	__u64 ns;
	__u64 ranges;       /* flushes of a range */
	__u64 cpus;         /* other CPUs interrupted, summed over the flushes */
};

/*
 * A write to a page while its target is armed, and for a while afterwards. In the histogram the time would count
 * from the end of the arm; from this the collector tells how long after its own protection each page was written,
 * or that it was before.
 */
struct rd_arm_write {
	__u64 ns;   /* 0: not written yet */
	__u64 page; /* page number, and the slot from RD_ARM_SLOT_SHIFT on */
};

struct rd_stats { /* index: slot * 2 + epoch */
	__u64 ref_ns;         /* CLOCK_MONOTONIC: when the target was armed */
	__u64 arm_writes_until; /* CLOCK_MONOTONIC: until then writes go to that log; 0: none do */
	__u64 kinds[RD_KINDS];
	__u64 pages;          /* bits set */
	__u64 lost;           /* faults for which a map had no room */
	__u64 lost_events;    /* records for which the ring had no room */
	__u64 hist[RD_HIST];  /* bits set, by logarithm of the time since ref_ns; a few may be missing */
	struct rd_tlb tlb[RD_TLB_REASONS];     /* not caused by arming */
	struct rd_tlb arm_tlb[RD_TLB_REASONS]; /* caused by arming */
};

/* Counts of a process, by thread group id: system.bpf.c. */
struct rd_counts {
	__u64 write_faults;
	__u64 first_touch;   /* no page was present */
	__u64 cow;           /* the page was copied */
	__u64 mkwrite;       /* the file system was notified */
	__u64 flushes_here;  /* TLB flushes on the CPU that started them, and */
	__u64 flushes_asked; /* those requested of other CPUs: mostly the same ones */
};

struct rd_event {
	__u64 ns;
	__u64 address;
	__u64 ip;
	__u32 space;
	__u32 tid;
	__s32 stack; /* < 0: none */
	__u32 kind;
};

struct rd_stack_key {
	__u32 space;
	__s32 stack;
};

#endif
