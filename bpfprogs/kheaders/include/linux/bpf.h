/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC carries a copy of the kernel's bpf.h of its own release: that one fits its compiler. */
#include <linux/types.h>
#include <bcc/bpf.h>
