/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * TLB flush paths, counted for the targets: their own flushes apart from those that arming causes.
 *
 * The tracepoint reports reason and pages on the CPU that flushes (its own share, or one requested
 * by another CPU). kprobe and fentry add
 * - flush_tlb_mm_range and arch_tlbbatch_flush: what was requested, by whom, and how long it took;
 * - the function that sends the request to other CPUs, and the one that handles it there: how many
 *   CPUs were interrupted. The two are matched by the address of the request, of which each CPU has
 *   one that stays in use until all have handled it.
 */

#define TLB_FLUSH_ALL (~0ULL)
#define TLB_FLUSH_ON_TASK_SWITCH 0 /* the kernel's enum tlb_flush_reason */
#define TLB_REMOTE_SHOOTDOWN 1
#define TLB_REMOTE_SEND_IPI 4
#define TLB_REMOTE_WRONG_CPU 5
#define RD_CPUS 8192

static __always_inline struct rd_tlb *tlb_of(struct rd_config *cfg, u64 t, u32 reason, bool by_arm)
{
	struct rd_stats *s = stats_of(t, cfg->epoch & 1);

	if (!s)
		return NULL;
	if (by_arm)
		return &s->arm_tlb[reason & (RD_TLB_REASONS - 1)];
	return &s->tlb[reason & (RD_TLB_REASONS - 1)];
}

static __always_inline void tlb_count(struct rd_config *cfg, u64 t, u32 reason, bool by_arm,
				      u64 pages)
{
	struct rd_tlb *tlb = tlb_of(cfg, t, reason, by_arm);

	if (!tlb)
		return;
	__sync_fetch_and_add(&tlb->flushes, 1);
	if (pages == TLB_FLUSH_ALL) {
		__sync_fetch_and_add(&tlb->full_flushes, 1);
	} else if (pages) { /* 0: a context switch that found nothing to flush */
		__sync_fetch_and_add(&tlb->ranges, 1);
		__sync_fetch_and_add(&tlb->pages, pages);
	}
}

/* The target that is being armed; 0: none. */
static __always_inline u64 target_of_arm(struct rd_config *cfg)
{
	u64 arming = *(volatile u64 *)&cfg->arming;

	return arming ? TARGET_SET | (arming - 1) << TARGET_SLOT_SHIFT : 0;
}

#ifndef RD_ENTRY_TRACEPOINT
/* A flush in progress, by thread id. target: whose memory; by_arm: 1 if arming caused it. */
struct rd_flush {
	u64 ns, target, request;
	u32 reason, by_arm;
	u64 full; /* a full flush: requested, or the range was too long */
};
BPF_TABLE("lru_hash", u64, struct rd_flush, flush_calls, 4096);

/* Requests in progress, by their address. cpu: the requesting one. */
struct rd_request {
	u64 target;
	u32 reason, by_arm, cpu, unused;
};
BPF_F_TABLE("hash", u64, struct rd_request, requests, RD_CPUS, 0);
/* Whether the request that this CPU handles was caused by arming. */
BPF_PERCPU_ARRAY(answering, u64, 1);
#endif

int tp_tlb_flush(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0, reason = ctx->args[0];
	u64 pages = ctx->args[1], id = bpf_get_current_pid_tgid();
	struct rd_config *cfg = config.lookup(&zero);
	bool by_arm = false;

	/* Before 5.16 a CPU with nothing left to flush reports that, too, also the requesting one. */
	if (!cfg || (!pages && reason != TLB_FLUSH_ON_TASK_SWITCH))
		return 0;
	u64 t = target_of_current(cfg);

#ifdef RD_ENTRY_TRACEPOINT
	if (reason == TLB_REMOTE_SEND_IPI && id >> 32 == cfg->arm_pid) {
		t = target_of_arm(cfg);
		by_arm = true;
	}
#else
	if (reason == TLB_REMOTE_SHOOTDOWN || reason == TLB_REMOTE_WRONG_CPU) {
		u64 *answered = answering.lookup(&zero);

		by_arm = answered && *answered;
	} else if (reason != TLB_FLUSH_ON_TASK_SWITCH) {
		struct rd_flush *f = flush_calls.lookup(&id);

		if (f && f->by_arm && reason == TLB_REMOTE_SEND_IPI) {
			t = f->target;
			by_arm = true;
		}
		if (f && !f->full && pages == TLB_FLUSH_ALL) {
			struct rd_tlb *tlb = tlb_of(cfg, f->target, f->reason, f->by_arm);

			f->full = 1;
			if (tlb)
				__sync_fetch_and_add(&tlb->full_flushes, 1);
		}
	}
#endif
	if (t)
		tlb_count(cfg, t, reason, by_arm, pages);
	return 0;
}

#ifndef RD_ENTRY_TRACEPOINT
static __always_inline int flush_begins(u64 mm, u64 start, u64 end, u32 reason)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);

	if (!cfg)
		return 0;
	bool by_arm = id >> 32 == cfg->arm_pid;
	bool own = !mm || mm == rd_read_u64((void *)bpf_get_current_task(), OFF_TASK_MM);
	u64 t = 0;

	/* Skip the collector's flushes of its own memory, and those of a target's memory by others (kcompactd). */
	if (own && !by_arm)
		t = target_of_current(cfg);
	else if (!own && by_arm)
		t = target_of_arm(cfg);
	if (!t)
		return 0;
	u64 pages = !mm || end == TLB_FLUSH_ALL ? TLB_FLUSH_ALL : (end - start) >> PAGE_SHIFT;
	struct rd_flush f = { .target = t, .reason = reason, .by_arm = by_arm,
			      .full = pages == TLB_FLUSH_ALL };

	tlb_count(cfg, t, reason, by_arm, pages);
	f.ns = bpf_ktime_get_ns();
	flush_calls.update(&id, &f);
	return 0;
}

static __always_inline int flush_ends(void)
{
	u64 id = bpf_get_current_pid_tgid();
	u32 zero = 0;
	struct rd_flush *f = flush_calls.lookup(&id);
	struct rd_config *cfg = config.lookup(&zero);

	if (!f || !cfg)
		return 0;
	u64 ns = bpf_ktime_get_ns() - f->ns, request = f->request;
	struct rd_tlb *tlb = tlb_of(cfg, f->target, f->reason, f->by_arm);

	flush_calls.delete(&id);
	if (request)
		requests.delete(&request);
	if (tlb)
		__sync_fetch_and_add(&tlb->ns, ns);
	return 0;
}

/* A request is about to be sent to other CPUs. */
static __always_inline int flush_asks(u64 request)
{
	u64 id = bpf_get_current_pid_tgid();
	struct rd_flush *f = flush_calls.lookup(&id);

	if (!f) {
		/* Not a target's request. A missed return probe may have left a stale entry here. */
		requests.delete(&request);
		return 0;
	}
	struct rd_request r = { .target = f->target, .reason = f->reason, .by_arm = f->by_arm,
				.cpu = bpf_get_smp_processor_id() };

	f->request = request;
	requests.update(&request, &r);
	return 0;
}

/* This CPU handles a request: that of another CPU, or (not an interruption) its own. */
static __always_inline int flush_answers(u64 request)
{
	u32 zero = 0;
	struct rd_config *cfg = config.lookup(&zero);
	struct rd_request *r = requests.lookup(&request);
	u64 *answered = answering.lookup(&zero);

	if (answered)
		*answered = r && r->by_arm;
	if (!cfg || !r || r->cpu == bpf_get_smp_processor_id())
		return 0;
	struct rd_tlb *tlb = tlb_of(cfg, r->target, r->reason, r->by_arm);

	if (tlb)
		__sync_fetch_and_add(&tlb->cpus, 1);
	return 0;
}
#endif

#ifdef RD_ENTRY_FENTRY
KFUNC_PROBE(flush_tlb_mm_range, void *mm, unsigned long start, unsigned long end)
{
	return flush_begins((u64)mm, start, end, RD_TLB_MM_RANGE);
}
KRETFUNC_PROBE(flush_tlb_mm_range, void *mm, unsigned long start, unsigned long end)
{
	return flush_ends();
}
KFUNC_PROBE(arch_tlbbatch_flush, void *batch)
{
	return flush_begins(0, 0, 0, RD_TLB_BATCH);
}
KRETFUNC_PROBE(arch_tlbbatch_flush, void *batch)
{
	return flush_ends();
}
/* Since 5.13 */
KFUNC_PROBE(native_flush_tlb_multi, void *cpus, void *request)
{
	return flush_asks((u64)request);
}
KFUNC_PROBE(flush_tlb_func, void *request)
{
	return flush_answers((u64)request);
}
/* Before */
KFUNC_PROBE(native_flush_tlb_others, void *cpus, void *request)
{
	return flush_asks((u64)request);
}
KFUNC_PROBE(flush_tlb_func_remote, void *request)
{
	return flush_answers((u64)request);
}
#endif

#ifdef RD_ENTRY_KPROBE
int kp_flush_range(struct pt_regs *ctx)
{
	return flush_begins(PT_REGS_PARM1(ctx), PT_REGS_PARM2(ctx), PT_REGS_PARM3(ctx),
			    RD_TLB_MM_RANGE);
}

int kp_batch(struct pt_regs *ctx)
{
	return flush_begins(0, 0, 0, RD_TLB_BATCH);
}

int kp_flush_return(struct pt_regs *ctx)
{
	return flush_ends();
}

int kp_flush_asks(struct pt_regs *ctx)
{
	return flush_asks(PT_REGS_PARM2(ctx));
}

int kp_flush_answers(struct pt_regs *ctx)
{
	return flush_answers(PT_REGS_PARM1(ctx));
}
#endif
