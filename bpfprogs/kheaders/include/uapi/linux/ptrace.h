/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* The register frame that kprobes and page-fault tracepoints pass. Kernel ABI, unlike its inner structures. */
#ifndef REDIRTY_KH_PTRACE_H
#define REDIRTY_KH_PTRACE_H
#if defined(__x86_64__) || defined(__TARGET_ARCH_x86)
struct pt_regs {
	unsigned long r15, r14, r13, r12, bp, bx, r11, r10, r9, r8;
	unsigned long ax, cx, dx, si, di, orig_ax, ip, cs, flags, sp, ss;
};
#elif defined(__aarch64__) || defined(__TARGET_ARCH_arm64)
struct pt_regs {
	unsigned long regs[31], sp, pc, pstate;
};
#else
#error "redirty: no register frame for this architecture yet (kheaders/include/uapi/linux/ptrace.h)"
#endif
#endif
