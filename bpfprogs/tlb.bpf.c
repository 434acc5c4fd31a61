/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * TLB flush paths, counted for the targets. The tracepoint gives reason and pages on the CPU
 * that flushes (its own share, or one it was asked for by another CPU); kprobe and fentry on
 * flush_tlb_mm_range and arch_tlbbatch_flush add how long the caller waited.
 */

#define TLB_FLUSH_ALL (~0ULL)

static __always_inline void tlb_count(struct rd_config *cfg, u64 t, u32 reason, u64 pages,
				      u64 ns)
{
	struct rd_stats *s = stats_of(t, cfg->epoch & 1);

	if (!s)
		return;
	struct rd_tlb *tlb = &s->tlb[reason & (RD_TLB_REASONS - 1)];

	__sync_fetch_and_add(&tlb->flushes, 1);
	if (pages == TLB_FLUSH_ALL)
		__sync_fetch_and_add(&tlb->full_flushes, 1);
	else
		__sync_fetch_and_add(&tlb->pages, pages);
	if (ns)
		__sync_fetch_and_add(&tlb->ns, ns);
}

int tp_tlb_flush(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	u64 t = target_of_current(cfg);

	if (t)
		tlb_count(cfg, t, ctx->args[0], ctx->args[1], 0);
	return 0;
}

#ifndef RD_ENTRY_TRACEPOINT
struct rd_flush {
	u64 ns, mm, pages;
};
BPF_TABLE("lru_hash", u64, struct rd_flush, flush_calls, 4096);

static __always_inline int flush_begins(u64 mm, u64 start, u64 end)
{
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	/* The collector's own arming flushes the target's TLB, but the target doesn't wait for it. */
	if (!cfg || bpf_get_current_pid_tgid() >> 32 == cfg->arm_pid)
		return 0;
	if (mm ? !target_of_mm(cfg, mm) : !target_of_current(cfg))
		return 0;
	u64 id = bpf_get_current_pid_tgid();
	struct rd_flush f = { .ns = bpf_ktime_get_ns(), .mm = mm };

	f.pages = !mm || end == TLB_FLUSH_ALL ? TLB_FLUSH_ALL : (end - start) >> PAGE_SHIFT;
	flush_calls.update(&id, &f);
	return 0;
}

static __always_inline int flush_ends(u32 reason)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 zero = 0;
	struct rd_flush *f = flush_calls.lookup(&id);
	struct rd_config *cfg = config.lookup(&zero);

	if (!f || !cfg)
		return 0;
	u64 ns = bpf_ktime_get_ns() - f->ns, mm = f->mm, pages = f->pages;

	flush_calls.delete(&id);
	u64 t = mm ? target_of_mm(cfg, mm) : target_of_current(cfg);

	if (t)
		tlb_count(cfg, t, reason, pages, ns);
	return 0;
}
#endif

#ifdef RD_ENTRY_FENTRY
KFUNC_PROBE(flush_tlb_mm_range, void *mm, unsigned long start, unsigned long end)
{
	return flush_begins((u64)mm, start, end);
}
KRETFUNC_PROBE(flush_tlb_mm_range, void *mm, unsigned long start, unsigned long end)
{
	return flush_ends(RD_TLB_MM_RANGE);
}
KFUNC_PROBE(arch_tlbbatch_flush, void *batch)
{
	return flush_begins(0, 0, 0);
}
KRETFUNC_PROBE(arch_tlbbatch_flush, void *batch)
{
	return flush_ends(RD_TLB_BATCH);
}
#endif

#ifdef RD_ENTRY_KPROBE
int kp_flush_range(struct pt_regs *ctx)
{
	return flush_begins(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx));
}

int kp_flush_range_return(struct pt_regs *ctx)
{
	return flush_ends(RD_TLB_MM_RANGE);
}

int kp_batch(struct pt_regs *ctx)
{
	return flush_begins(0, 0, 0);
}

int kp_batch_return(struct pt_regs *ctx)
{
	return flush_ends(RD_TLB_BATCH);
}
#endif
