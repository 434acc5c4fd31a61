/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 */
/* For BCC's stack map macro. */
#define roundup_pow_of_two(n) (n) /* the collector gives powers of two */
