/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * Reads page tables. Not attached: the kernel runs these programs in the collector's context
 * on request (BPF_PROG_TEST_RUN of a raw tracepoint's program, Linux 5.10).
 *
 * -D flags: OFF_* from BTF, RD_TABLES.
 */
#include <uapi/linux/ptrace.h>
#include "compat.h"

#define MMAPABLE (1 << 10) /* BPF_F_MMAPABLE: the collector reads and writes these in place */

struct rd_wanted {
	u64 address; /* a kernel address; 0: none */
	s64 error;
};

struct rd_table {
	u64 entries[512];
};

BPF_F_TABLE("array", u32, struct rd_wanted, wanted, RD_TABLES, MMAPABLE);
BPF_F_TABLE("array", u32, struct rd_table, tables, RD_TABLES, MMAPABLE);

/*
 * Find the top-level table of the address space of a /proc/PID/mem that the collector has open as
 * descriptor args[0]: the private data of such a file is the mm_struct.
 */
int tables_top(struct bpf_raw_tracepoint_args *ctx)
{
	u32 zero = 0;
	struct rd_wanted *answer = wanted.lookup(&zero);
	u64 at = bpf_get_current_task();

	if (!answer)
		return 0;
	at = rd_read_u64((void *)at, OFF_TASK_FILES);
	at = rd_read_u64((void *)at, OFF_FILES_FDT);
	at = rd_read_u64((void *)at, OFF_FDT_FD);
	at = rd_read_u64((void *)(at + 8 * ctx->args[0]), 0);
	at = rd_read_u64((void *)at, OFF_FILE_PRIVATE);
	answer->address = rd_read_u64((void *)at, OFF_MM_PGD);
	return 0;
}

/* Copy the requested pages. */
int tables_read(struct bpf_raw_tracepoint_args *ctx)
{
	for (u32 i = 0; i < RD_TABLES; i++) {
		u32 n = i;
		struct rd_wanted *w = wanted.lookup(&n);
		struct rd_table *t = tables.lookup(&n);

		if (!w || !t || !w->address)
			return 0;
		w->error = bpf_probe_read_kernel(t, sizeof(*t), (void *)w->address);
	}
	return 0;
}
