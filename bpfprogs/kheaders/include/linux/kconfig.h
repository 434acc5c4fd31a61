/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* BCC includes this first. Only what its own helpers.h asks of a kernel's configuration. */
#define CONFIG_BPF_SYSCALL 1
