/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/*
 * All differences between kernels, in one place.
 *
 * Offsets (OFF_*) come from BTF at load, as -D flags: no kernel header, no copied structure.
 * OFF_MM_OWNER is not defined where the kernel has no mm_struct.owner (CONFIG_MEMCG off): then
 * writes from outside into a target's memory are left to the scan.
 */
#ifndef REDIRTY_COMPAT_H
#define REDIRTY_COMPAT_H

#define FAULT_FLAG_WRITE 0x1 /* include/linux/mm_types.h; the same from 4.x to 7.x */
#define VM_FAULT_FALLBACK 0x800
#define PF_KTHREAD 0x00200000
#define X86_PF_PROT 0x1
#define X86_PF_WRITE 0x2
#define PAGE_SHIFT 12

static __always_inline u64 rd_read_u64(const void *base, u32 offset)
{
	u64 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), (const char *)base + offset);
	return v;
}

static __always_inline u32 rd_read_u32(const void *base, u32 offset)
{
	u32 v = 0;

	bpf_probe_read_kernel(&v, sizeof(v), (const char *)base + offset);
	return v;
}

/*
 * Set bits in a shared word; return the bits that were not set before. Kernels before 5.12
 * have no atomic OR in BPF: there (RD_NO_ATOMIC_OR) the map holds a byte for each page
 * instead, and a byte is stored as a whole.
 */
#ifndef RD_NO_ATOMIC_OR
static __always_inline u64 rd_set_bits(u64 *word, u64 mask)
{
	return mask & ~__sync_fetch_and_or(word, mask);
}
#endif

#endif
