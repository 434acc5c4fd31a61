/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Counts write faults and TLB flushes of every process: there is no target, and nothing is armed.
 * A separate program, loaded while all processes are shown.
 *
 * -D flags: RD_PROCESSES, the number of processes for which there is room; RD_MORE_FENTRY or
 * RD_MORE_KPROBE for the kinds of fault that tracepoints do not report, RD_FAULTS_KPROBE where there are
 * no tracepoints of faults.
 */
#include <uapi/linux/ptrace.h>
#include "events.h"
#include "compat.h"

#define TLB_LOCAL_SHOOTDOWN 2 /* the kernel's enum tlb_flush_reason */
#define TLB_LOCAL_MM_SHOOTDOWN 3
#define TLB_REMOTE_SEND_IPI 4

/* Preallocated: a fault handler must not allocate memory. */
BPF_F_TABLE("hash", u32, struct rd_counts, counts, RD_PROCESSES, 0);
/* Faults and flushes of processes for which there was no room. */
BPF_F_TABLE("array", u32, u64, uncounted, 1, 0);

static __always_inline struct rd_counts *counts_of_current(void)
{
	u32 tgid = bpf_get_current_pid_tgid() >> 32, zero = 0;
	struct rd_counts *c = counts.lookup(&tgid), none = {};

	if (c)
		return c;
	counts.insert(&tgid, &none);
	c = counts.lookup(&tgid);
	if (!c) {
		u64 *lost = uncounted.lookup(&zero);

		if (lost)
			__sync_fetch_and_add(lost, 1);
	}
	return c;
}

#ifndef RD_FAULTS_KPROBE
int tp_fault(struct bpf_raw_tracepoint_args *ctx)
{
	u64 address = ctx->args[0], error = ctx->args[2];

	if (!(error & X86_PF_WRITE) || address >> 63) /* the kernel's own memory */
		return 0;
	struct rd_counts *c = counts_of_current();

	if (!c)
		return 0;
	__sync_fetch_and_add(&c->write_faults, 1);
	if (!(error & X86_PF_PROT))
		__sync_fetch_and_add(&c->first_touch, 1);
	return 0;
}
#else
int kp_fault(struct pt_regs *ctx)
{
	if (!(PT_REGS_PARM3(ctx) & FAULT_FLAG_WRITE))
		return 0;
	struct rd_counts *c = counts_of_current();

	if (c)
		__sync_fetch_and_add(&c->write_faults, 1);
	return 0;
}
#endif

int tp_flush(struct bpf_raw_tracepoint_args *ctx)
{
	u32 reason = ctx->args[0];
	u64 pages = ctx->args[1];
	bool here = reason == TLB_LOCAL_SHOOTDOWN || reason == TLB_LOCAL_MM_SHOOTDOWN;

	if (!pages || (!here && reason != TLB_REMOTE_SEND_IPI))
		return 0;
	struct rd_counts *c = counts_of_current();

	if (c)
		__sync_fetch_and_add(here ? &c->flushes_here : &c->flushes_asked, 1);
	return 0;
}

static __always_inline int copied(void)
{
	struct rd_counts *c = counts_of_current();

	if (c)
		__sync_fetch_and_add(&c->cow, 1);
	return 0;
}

static __always_inline int asked_file_system(void)
{
	struct rd_counts *c = counts_of_current();

	if (c)
		__sync_fetch_and_add(&c->mkwrite, 1);
	return 0;
}

#ifdef RD_MORE_FENTRY
KFUNC_PROBE(wp_page_copy, void *vmf)
{
	return copied();
}
KFUNC_PROBE(do_page_mkwrite, void *vmf)
{
	return asked_file_system();
}
#endif

#ifdef RD_MORE_KPROBE
int kp_wp_page_copy(struct pt_regs *ctx)
{
	return copied();
}

int kp_do_page_mkwrite(struct pt_regs *ctx)
{
	return asked_file_system();
}
#endif
