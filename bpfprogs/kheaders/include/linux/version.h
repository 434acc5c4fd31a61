/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC's helpers.h compares versions for the licence check of kprobes on very old kernels; redirty never does. */
#define KERNEL_VERSION(a, b, c) (((a) << 16) + ((b) << 8) + (c))
#define LINUX_VERSION_CODE KERNEL_VERSION(5, 10, 0)
