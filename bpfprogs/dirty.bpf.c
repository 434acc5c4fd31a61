/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * The write-fault log: one recording core, three kinds of hook (fentry, kprobe,
 * tracepoint), of which one is compiled, and the lifecycle of targets (fork, exec, exit).
 *
 * -D flags: RD_ENTRY_FENTRY, RD_ENTRY_KPROBE or RD_ENTRY_TRACEPOINT; OFF_* (compat.h), RD_REGIONS,
 * RD_SLOTS, RD_TARGETS; RD_EVENTS with RD_RING_PAGES for the ring of single events; RD_STACKS for stacks
 * of writers; RD_PART if only some memory of a target is to be recorded (rd_config.chosen).
 */
#include <uapi/linux/ptrace.h>
#include "events.h"
#include "compat.h"

#define MMAPABLE (1 << 10)  /* BPF_F_MMAPABLE: the collector reads and writes these in place */

BPF_F_TABLE("array", u32, struct rd_config, config, 1, MMAPABLE);
BPF_F_TABLE("array", u32, struct rd_stats, stats, RD_SLOTS * 2, MMAPABLE);
BPF_F_TABLE("hash", u32, struct rd_target, targets, RD_TARGETS, 0);
/* Preallocated: a fault handler must not allocate memory. */
#ifdef RD_NO_ATOMIC_OR
BPF_F_TABLE("array", u32, struct rd_bits, empty_bits, 1, 0);
BPF_F_TABLE("hash", u64, struct rd_bits, bits0, RD_REGIONS, 0);
BPF_F_TABLE("hash", u64, struct rd_bits, bits1, RD_REGIONS, 0);
#else
#define RD_ROWS (1 << RD_ROWS_BITS)
BPF_F_TABLE("array", u32, struct rd_row, rows, RD_ROWS * 2, MMAPABLE);
/* Indices of the rows in use, in the order of their allocation: the collector reads only these. */
BPF_F_TABLE("array", u32, u32, taken, RD_REGIONS * 2, MMAPABLE);
BPF_F_TABLE("array", u32, struct rd_arm_write, arm_writes, RD_ARM_WRITES * 2, MMAPABLE);
#endif

/* Never looked up: when user space changes a map of maps, the kernel waits for running programs. */
BPF_F_TABLE("array", u32, u64, grace_inner, 1, 0);
BPF_ARRAY_OF_MAPS(grace, "grace_inner", 1);

#ifdef RD_EVENTS
BPF_RINGBUF_OUTPUT(events, RD_RING_PAGES);
#endif
#ifdef RD_STACKS
BPF_STACK_TRACE(stacks, RD_STACK_ENTRIES);
BPF_F_TABLE("hash", struct rd_stack_key, u64, stack_pages, RD_STACK_ENTRIES, 0);
#endif

/* ---- targets ---- */

/* A target as a word: its space, its slot, and a bit that is always set. 0: none. */
#define TARGET_SLOT_SHIFT (64 - RD_REGION_BITS)
#define TARGET_SET (1ULL << 63)

static __always_inline u32 space_of(u64 target)
{
	return target & ((1ULL << TARGET_SLOT_SHIFT) - 1);
}

static __always_inline u32 slot_of(u64 target)
{
	return (target & ~TARGET_SET) >> TARGET_SLOT_SHIFT;
}

static __always_inline u64 target_of_tgid(struct rd_config *cfg, u32 tgid)
{
	u64 *near = &cfg->near[tgid % RD_NEAR];
	u64 seen = *(volatile u64 *)near;

	/* Most faults on a machine are not the target's: one word excludes them without a hash lookup. */
	if (!seen)
		return 0;
	if ((seen & TARGET_SET) && (seen & ((1 << RD_SPACE_TGID_BITS) - 1)) == tgid)
		return seen;
	struct rd_target *t = targets.lookup(&tgid);

	if (!t)
		return 0;
	u64 target = TARGET_SET | (u64)t->slot << TARGET_SLOT_SHIFT | t->space;
#ifndef RD_NO_ATOMIC_OR
	/* Only a process's own memory carries its id; a vfork child in another's memory is looked up. */
	if (!(seen & TARGET_SET) && (t->space & ((1 << RD_SPACE_TGID_BITS) - 1)) == tgid)
		__sync_val_compare_and_swap(near, seen, target);
#endif
	return target;
}

static __always_inline u64 target_of_current(struct rd_config *cfg)
{
	return target_of_tgid(cfg, bpf_get_current_pid_tgid() >> 32);
}

/* Memory is keyed by its address space, and the writing task may have borrowed it. */
static __always_inline u64 target_of_mm(struct rd_config *cfg, u64 mm)
{
	u64 task = bpf_get_current_task();

	if (rd_read_u64((void *)task, OFF_TASK_MM) == mm &&
	    !(rd_read_u32((void *)task, OFF_TASK_FLAGS) & PF_KTHREAD))
		return target_of_current(cfg);
#ifdef OFF_MM_OWNER
	u64 owner = rd_read_u64((void *)mm, OFF_MM_OWNER);

	if (owner)
		return target_of_tgid(cfg, rd_read_u32((void *)owner, OFF_TASK_TGID));
#endif
	return 0;
}

/* ---- the recording core ---- */

static __always_inline struct rd_stats *stats_of(u64 target, u64 epoch)
{
	u32 i = slot_of(target) * 2 + epoch;

	return stats.lookup(&i);
}

static __always_inline u32 hist_slot(u64 ns)
{
	u64 v = ns;
	u32 octave = 0;

	if (v >> 32) { v >>= 32; octave += 32; }
	if (v >> 16) { v >>= 16; octave += 16; }
	if (v >> 8) { v >>= 8; octave += 8; }
	if (v >> 4) { v >>= 4; octave += 4; }
	if (v >> 2) { v >>= 2; octave += 2; }
	if (v >> 1) octave += 1;
	if (octave < RD_HIST_FIRST_OCTAVE)
		return 0;
	u32 slot = 1 + (octave - RD_HIST_FIRST_OCTAVE) * RD_HIST_PER_OCTAVE +
		   ((ns >> (octave - 4)) & (RD_HIST_PER_OCTAVE - 1));
	return slot < RD_HIST ? slot : RD_HIST - 1;
}

#ifdef RD_NO_ATOMIC_OR
static __always_inline struct rd_bits *bits_of(struct rd_config *cfg, u64 key, u64 epoch)
{
	struct rd_bits *b = epoch ? bits1.lookup(&key) : bits0.lookup(&key);

	if (b)
		return b;
	u32 zero = 0;
	struct rd_bits *empty = empty_bits.lookup(&zero);

	if (!empty)
		return NULL;
	/* an insert keeps the entry of another CPU that was first */
	if (epoch) {
		bits1.insert(&key, empty);
		return bits1.lookup(&key);
	}
	bits0.insert(&key, empty);
	return bits0.lookup(&key);
}
#else
static __always_inline struct rd_bits *bits_of(struct rd_config *cfg, u64 key, u64 epoch)
{
	u32 first = (key * RD_HASH_FACTOR) >> (64 - RD_ROWS_BITS);

	for (int probe = 0; probe < RD_PROBES; probe++) {
		u32 at = ((first + probe) & (RD_ROWS - 1)) | (u32)(epoch & 1) << RD_ROWS_BITS;
		struct rd_row *row = rows.lookup(&at);

		if (!row)
			return NULL;
		u64 there = *(volatile u64 *)&row->key;

		if (!there) {
			there = __sync_val_compare_and_swap(&row->key, 0, key);
			if (!there) {
				u64 number = __sync_fetch_and_add(&cfg->used[epoch & 1], 1);
				u32 i = number + (epoch & 1) * RD_REGIONS;
				u32 *entry = number < RD_REGIONS ? taken.lookup(&i) : NULL;

				if (entry)
					*entry = at & (RD_ROWS - 1);
				return &row->bits;
			}
		}
		if (there == key) /* found, or another CPU was first */
			return &row->bits;
	}
	return NULL;
}
#endif

/* Mark the page of an address, or with huge its whole region; return the number of pages newly marked. */
static __always_inline u64 mark(struct rd_config *cfg, struct rd_stats *s, u32 space, u64 address,
				u64 epoch, bool huge)
{
	u64 key = ((u64)space << RD_REGION_BITS) |
		  ((address >> RD_REGION_SHIFT) & ((1ULL << RD_REGION_BITS) - 1));
	struct rd_bits *b = bits_of(cfg, key, epoch);
	u64 fresh = 0;

	if (!b) {
		__sync_fetch_and_add(&s->lost, 1);
		return 0;
	}
#ifdef RD_NO_ATOMIC_OR
	if (huge) {
		#pragma unroll
		for (int i = 0; i < 64; i++) {
			/* volatile: one by one, or the compiler keeps all 64 on the stack of 512 bytes */
			volatile u64 *bytes = (u64 *)&b->pages[i * 8];
			u64 seen = *bytes;

			fresh += 8 - ((seen * 0x0101010101010101ULL) >> 56);
			*bytes = 0x0101010101010101ULL;
		}
		return fresh;
	}
	u8 *page = &b->pages[(address >> PAGE_SHIFT) & 511];

	if (!*page) {
		*page = 1;
		fresh = 1;
	}
#else
	if (huge) {
		#pragma unroll
		for (int i = 0; i < 8; i++) {
			u64 set = rd_set_bits(&b->words[i], ~0ULL);

			if (set == ~0ULL) {
				fresh += 64;
				continue;
			}
			set -= (set >> 1) & 0x5555555555555555ULL;
			set = (set & 0x3333333333333333ULL) + ((set >> 2) & 0x3333333333333333ULL);
			set = (set + (set >> 4)) & 0x0f0f0f0f0f0f0f0fULL;
			fresh += (set * 0x0101010101010101ULL) >> 56;
		}
		return fresh;
	}
	u64 bit = 1ULL << ((address >> PAGE_SHIFT) & 63);
	u64 *word = &b->words[(address >> 18) & 7];

	/* Read first: the second fault on a page should not take the cache line exclusively. */
	if (!(*word & bit) && rd_set_bits(word, bit))
		fresh = 1;
#endif
	return fresh;
}

static __always_inline void count(struct rd_stats *s, u32 kind)
{
	__sync_fetch_and_add(&s->kinds[kind & (RD_KINDS - 1)], 1);
}

#ifndef RD_NO_ATOMIC_OR
/* Log a write to a page around its target's arm; return whether there was room. */
static __always_inline bool log_arm_write(struct rd_config *cfg, u64 t, u64 address, u64 epoch, u64 now)
{
	u64 number = __sync_fetch_and_add(&cfg->arm_writes[epoch & 1], 1);

	if (number >= RD_ARM_WRITES)
		return false;
	u32 i = number + (epoch & 1) * RD_ARM_WRITES;
	struct rd_arm_write *w = arm_writes.lookup(&i);

	if (!w)
		return false;
	w->page = (address >> PAGE_SHIFT) | (u64)slot_of(t) << RD_ARM_SLOT_SHIFT;
	w->ns = now;
	return true;
}
#endif

/*
 * Count pages newly marked, by time. Reading the clock may take longer than everything else, so after the
 * first pages, and those around the arm, only every RD_CLOCK_EVERY-th reads it, for itself and those before it.
 * Return the time, or 0.
 */
static __always_inline u64 count_pages(struct rd_config *cfg, struct rd_stats *s, u64 t, u64 address,
				       u64 epoch, u64 fresh)
{
#ifdef RD_NO_ATOMIC_OR /* nor an addition that returns the sum */
	__sync_fetch_and_add(&s->pages, fresh);
#else
	u64 before = __sync_fetch_and_add(&s->pages, fresh);
	u64 until = s->arm_writes_until;

	if (fresh == 1 && before >= RD_CLOCK_EACH && !until) {
		if ((before + 1) & (RD_CLOCK_EVERY - 1))
			return 0;
		fresh = RD_CLOCK_EVERY;
	}
#endif
	u64 now = bpf_ktime_get_ns();
#ifndef RD_NO_ATOMIC_OR
	if (until) {
		if (now >= until)
			s->arm_writes_until = 0;
		else if (fresh == 1 && log_arm_write(cfg, t, address, epoch, now))
			return now;
	}
#endif
	u64 ref = s->ref_ns;
	u64 slot = hist_slot(now > ref ? now - ref : 0);

	/*
	 * clang knows that the mask below changes nothing and would omit it; the verifier of
	 * kernels before about 6.7 cannot prove it, and refuses the access.
	 */
	asm volatile("" : "+r"(slot));
	__sync_fetch_and_add(&s->hist[slot & (RD_HIST - 1)], fresh);
	return now;
}

static __always_inline bool belongs(struct rd_config *cfg, u64 address)
{
#ifdef RD_PART
	for (u32 i = 0; i < RD_CHOSEN; i++) {
		if (i >= cfg->chosen_count)
			return false;
		if (address >= cfg->chosen[i].start && address < cfg->chosen[i].end)
			return true;
	}
	return false;
#else
	return true;
#endif
}

static __always_inline void record(void *ctx, struct rd_config *cfg, u64 t, u64 address, u64 ip,
				    u32 kind, bool huge)
{
	u64 epoch = cfg->epoch & 1;

	if (!belongs(cfg, address))
		return;
	struct rd_stats *s = stats_of(t, epoch);

	if (!s)
		return;
	u64 fresh = mark(cfg, s, space_of(t), address, epoch, huge);
	s32 stack = -1;
	u64 now = 0;

	if (kind != RD_HUGE)
		count(s, kind);
	if (fresh)
		now = count_pages(cfg, s, t, address, epoch, fresh);
#ifndef RD_NO_ATOMIC_OR
	else if (s->arm_writes_until && !huge) { /* its first fault was maybe before it was protected */
		now = bpf_ktime_get_ns();
		if (now < s->arm_writes_until)
			log_arm_write(cfg, t, address, epoch, now);
	}
#endif
#ifdef RD_STACKS
	stack = stacks.get_stackid(ctx, BPF_F_USER_STACK);
	if (fresh) {
		struct rd_stack_key key = { .space = space_of(t), .stack = stack };
		u64 zero = 0;
		u64 *n = stack_pages.lookup_or_try_init(&key, &zero);

		if (n)
			__sync_fetch_and_add(n, fresh);
		else
			__sync_fetch_and_add(&s->lost_events, 1);
	}
#endif
#ifdef RD_EVENTS
	if (kind == RD_HUGE)
		return; /* the fault itself is in the ring already */
	struct rd_event *e = events.ringbuf_reserve(sizeof(struct rd_event));

	if (!e) {
		__sync_fetch_and_add(&s->lost_events, 1);
		return;
	}
	e->ns = now ? now : bpf_ktime_get_ns();
	e->address = address;
	e->ip = ip;
	e->space = space_of(t);
	e->tid = bpf_get_current_pid_tgid();
	e->stack = stack;
	e->kind = kind;
	events.ringbuf_submit(e, BPF_RB_NO_WAKEUP); /* the collector polls many times a second */
#endif
}

static __always_inline u64 mm_of_vmf(u64 vmf)
{
	return rd_read_u64((void *)rd_read_u64((void *)vmf, OFF_VMF_VMA), OFF_VMA_MM);
}

static __always_inline void count_fault(u64 vmf, u32 kind)
{
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return;
	u64 t = target_of_mm(cfg, mm_of_vmf(vmf));

	if (!t)
		return;
#ifdef RD_PART
	if (!belongs(cfg, rd_read_u64((void *)vmf, OFF_VMF_ADDRESS)))
		return;
#endif
	struct rd_stats *s = stats_of(t, cfg->epoch & 1);

	if (s)
		count(s, kind);
}

#ifdef RD_ENTRY_TRACEPOINT
/* ---- hooks: tracepoints exceptions:page_fault_user and page_fault_kernel ---- */

static __always_inline u32 kind_of_error(u64 error)
{
	return error & X86_PF_PROT ? RD_WRITE_PROTECT : RD_FIRST_TOUCH;
}

int tp_fault_user(struct bpf_raw_tracepoint_args *ctx)
{
	u64 error = ctx->args[2];
	u32 zero = 0;

	if (!(error & X86_PF_WRITE))
		return 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 t = target_of_current(cfg);

	if (!t)
		return 0;
	u64 ip = 0;
#if defined(RD_EVENTS)
	ip = rd_read_u64((void *)ctx->args[1], __builtin_offsetof(struct pt_regs, ip));
#endif
	record(ctx, cfg, t, ctx->args[0], ip, kind_of_error(error), false);
	return 0;
}

/* The kernel writes on behalf of a task (read(2) into a buffer): maybe a kernel thread in a borrowed mm. */
int tp_fault_kernel(struct bpf_raw_tracepoint_args *ctx)
{
	u64 address = ctx->args[0], error = ctx->args[2];
	u32 zero = 0;

	if (!(error & X86_PF_WRITE) || address >> 63)
		return 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 mm = rd_read_u64((void *)bpf_get_current_task(), OFF_TASK_MM);

	if (!mm)
		return 0;
	u64 t = target_of_mm(cfg, mm);

	if (t)
		record(ctx, cfg, t, address, 0, kind_of_error(error), false);
	return 0;
}
#endif

#ifndef RD_ENTRY_TRACEPOINT
/* ---- hooks: kprobe and fentry, with common bodies ---- */

#define FAULT_FLAG_USER 0x40

static __always_inline int on_mm_fault(void *ctx, u64 vma, u64 address, u32 flags, u64 regs)
{
	u32 zero = 0;

	if (!(flags & FAULT_FLAG_WRITE))
		return 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 t;

	if (flags & FAULT_FLAG_USER) /* a thread in its own memory: no need to read the mapping */
		t = target_of_current(cfg);
	else
		t = target_of_mm(cfg, rd_read_u64((void *)vma, OFF_VMA_MM));
	if (!t)
		return 0;
	u64 ip = 0;
#if defined(RD_EVENTS)
	if (regs && (flags & FAULT_FLAG_USER))
		ip = rd_read_u64((void *)regs, __builtin_offsetof(struct pt_regs, ip));
#endif
	record(ctx, cfg, t, address, ip, RD_WRITE_FAULTS, false);
	return 0;
}

static __always_inline int on_huge_at(void *ctx, u64 mm, u64 address)
{
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 t = target_of_mm(cfg, mm);

	if (!t || !belongs(cfg, address))
		return 0;
	struct rd_stats *s = stats_of(t, cfg->epoch & 1);

	if (s)
		count(s, RD_HUGE);
	record(ctx, cfg, t, address, 0, RD_HUGE, true);
	return 0;
}

/* A huge page was written, or created and written: the hardware does not report which part. */
static __always_inline int on_huge(void *ctx, u64 vmf)
{
	if (!(rd_read_u32((void *)vmf, OFF_VMF_FLAGS) & FAULT_FLAG_WRITE))
		return 0;
	return on_huge_at(ctx, mm_of_vmf(vmf), rd_read_u64((void *)vmf, OFF_VMF_ADDRESS));
}
#endif

#ifdef RD_ENTRY_FENTRY
KFUNC_PROBE(handle_mm_fault, void *vma, unsigned long address, unsigned int flags, void *regs)
{
	return on_mm_fault(ctx, (u64)vma, address, flags, (u64)regs);
}
KFUNC_PROBE(do_wp_page, void *vmf)
{
	count_fault((u64)vmf, RD_WRITE_PROTECT);
	return 0;
}
KFUNC_PROBE(wp_page_copy, void *vmf)
{
	count_fault((u64)vmf, RD_COW);
	return 0;
}
KFUNC_PROBE(do_page_mkwrite, void *vmf)
{
	count_fault((u64)vmf, RD_MKWRITE);
	return 0;
}
/* At the return: most calls fall back to small pages, which only the result shows. */
KRETFUNC_PROBE(do_huge_pmd_anonymous_page, void *vmf, unsigned int ret)
{
	return ret & VM_FAULT_FALLBACK ? 0 : on_huge(ctx, (u64)vmf);
}
KRETFUNC_PROBE(do_huge_pmd_wp_page, void *vmf, unsigned int ret)
{
	return ret & VM_FAULT_FALLBACK ? 0 : on_huge(ctx, (u64)vmf);
}
#endif

#ifdef RD_ENTRY_KPROBE
int kp_handle_mm_fault(struct pt_regs *ctx)
{
	return on_mm_fault(ctx, PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx),
			   PT_REGS_PARM4(ctx));
}

int kp_do_wp_page(struct pt_regs *ctx)
{
	count_fault(PT_REGS_PARM1(ctx), RD_WRITE_PROTECT);
	return 0;
}

int kp_wp_page_copy(struct pt_regs *ctx)
{
	count_fault(PT_REGS_PARM1(ctx), RD_COW);
	return 0;
}

int kp_do_page_mkwrite(struct pt_regs *ctx)
{
	count_fault(PT_REGS_PARM1(ctx), RD_MKWRITE);
	return 0;
}
#endif

#ifndef RD_ENTRY_TRACEPOINT
/* ---- kprobes, also with fentry: for functions that take or return a structure, which fentry refuses ---- */

/* A kretprobe has no arguments: the probe at the entry saves them. */
BPF_TABLE("lru_hash", u64, u64, huge_calls, 1024);

int kp_huge_entry(struct pt_regs *ctx)
{
	u64 id = bpf_get_current_pid_tgid(), vmf = PT_REGS_PARM1(ctx);

	huge_calls.update(&id, &vmf);
	return 0;
}

int kp_huge_return(struct pt_regs *ctx)
{
	u64 id = bpf_get_current_pid_tgid();
	u64 *vmf = huge_calls.lookup(&id);

	if (!vmf)
		return 0;
	u64 v = *vmf;

	huge_calls.delete(&id);
	return PT_REGS_RC(ctx) & VM_FAULT_FALLBACK ? 0 : on_huge(ctx, v);
}

/*
 * khugepaged or MADV_COLLAPSE merges small pages into a huge one that is writable as a whole: from now
 * on no write to it faults until the next arm. Only anonymous memory: the pages of a file are just unmapped.
 */
int kp_collapse(struct pt_regs *ctx)
{
	void *vma = (void *)PT_REGS_PARM1(ctx);

#ifdef OFF_VMA_OPS
	if (rd_read_u64(vma, OFF_VMA_OPS))
		return 0;
#endif
	return on_huge_at(ctx, rd_read_u64(vma, OFF_VMA_MM), PT_REGS_PARM2(ctx));
}

#ifdef RD_MPROTECT_OPENS
#define MM_CP_DIRTY_ACCT 1
BPF_F_TABLE("hash", struct rd_range, u64, opened, RD_RANGES, 0);

/*
 * On such a kernel mprotect lets dirty pages of a shared file be written without a fault, and does not set
 * their soft-dirty bit: from now on writes to them are not tracked until the next arm.
 */
int kp_change_protection(struct pt_regs *ctx)
{
	u64 start = PT_REGS_PARM2(ctx), end = PT_REGS_PARM3(ctx);
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg || !(PT_REGS_PARM5(ctx) & MM_CP_DIRTY_ACCT))
		return 0;
	u64 t = target_of_mm(cfg, rd_read_u64((void *)PT_REGS_PARM1(ctx), OFF_VMA_MM));

	if (!t)
		return 0;
	u64 epoch = cfg->epoch & 1;
	struct rd_range key = { .start = start, .space = space_of(t), .epoch = epoch };
	u64 *known = opened.lookup(&key);

	if (known && *known >= end)
		return 0;
	opened.update(&key, &end);
	if (!opened.lookup(&key)) {
		struct rd_stats *s = stats_of(t, epoch);

		if (s)
			__sync_fetch_and_add(&s->lost, 1);
	}
	return 0;
}
#endif
#endif

/* ---- the lifecycle of targets: raw tracepoints of the scheduler, on every kernel ---- */

/* A copy of this target may be stale: make the next fault look it up in the hash. */
static __always_inline void invalidate(struct rd_config *cfg, u32 tgid)
{
	u64 number = 1;

#ifndef RD_NO_ATOMIC_OR /* otherwise there are no copies */
	number += __sync_fetch_and_add(&cfg->changes, 1);
#endif
	*(volatile u64 *)&cfg->near[tgid % RD_NEAR] = number;
}

static __always_inline void set_target(struct rd_config *cfg, u32 tgid, u32 space, u32 slot)
{
	struct rd_target t = { .space = space, .slot = slot };

	invalidate(cfg, tgid); /* before the entry, or a fault in between would be ignored */
	targets.update(&tgid, &t);
	invalidate(cfg, tgid); /* after it, or a copy of the old entry would stay */
}

int tp_fork(struct bpf_raw_tracepoint_args *ctx)
{
	void *parent = (void *)ctx->args[0], *child = (void *)ctx->args[1];
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u32 parent_tgid = rd_read_u32(parent, OFF_TASK_TGID), tgid = rd_read_u32(child, OFF_TASK_TGID);

	if (tgid == parent_tgid)
		return 0; /* a thread */
	u64 t = target_of_tgid(cfg, parent_tgid);

	if (!t)
		return 0;
	/* vfork and clone(CLONE_VM): another process in the same memory, the same space */
	if (rd_read_u64(parent, OFF_TASK_MM) == rd_read_u64(child, OFF_TASK_MM))
		set_target(cfg, tgid, space_of(t), slot_of(t));
	else if (cfg->follow_fork)
		set_target(cfg, tgid, tgid, 0);
	return 0;
}

int tp_exec(struct bpf_raw_tracepoint_args *ctx)
{
	u32 tgid = rd_read_u32((void *)ctx->args[0], OFF_TASK_TGID), zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 t = target_of_tgid(cfg, tgid);

	if (!t)
		return 0;
	u32 space = space_of(t);

	if ((space & ((1 << RD_SPACE_TGID_BITS) - 1)) == tgid)
		space += 1 << RD_SPACE_TGID_BITS; /* new memory of the same process */
	else if (cfg->follow_fork)
		space = tgid; /* a vfork child leaves its parent's memory */
	else {
		targets.delete(&tgid);
		invalidate(cfg, tgid);
		return 0;
	}
	set_target(cfg, tgid, space & ((1 << (64 - RD_REGION_BITS)) - 1), 0);
	return 0;
}

/* From now on this id may be reused by another process, which must not be traced. */
int tp_exit(struct bpf_raw_tracepoint_args *ctx)
{
	void *task = (void *)ctx->args[0];
	u32 tgid = rd_read_u32(task, OFF_TASK_TGID), zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg || !target_of_tgid(cfg, tgid))
		return 0;
	if (rd_read_u32((void *)rd_read_u64(task, OFF_TASK_SIGNAL), OFF_SIGNAL_LIVE) == 0) {
		targets.delete(&tgid);
		invalidate(cfg, tgid);
	}
	return 0;
}
