/* Registers with known contents across a page write and a system call, and the processor's tick counter. */
#ifndef WORKLOADS_REGISTERS_H
#define WORKLOADS_REGISTERS_H

#include "common.h"

#include <errno.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#ifdef __x86_64__

static inline uint64_t read_ticks(void)
{
	uint32_t low, high, processor;

	/* rdtscp waits for what comes before it; the fence keeps what comes after it from starting early. */
	__asm__ volatile("rdtscp\n\tlfence" : "=a"(low), "=d"(high), "=c"(processor)::"memory");
	return (uint64_t)high << 32 | low;
}

struct registers {
	uint64_t vector[32];                   /* xmm0-15 */
	uint64_t general[7];                   /* r8, r9, r10, r12-r15 */
	uint64_t padding;
};

#define VECTOR_IN(n) "movdqa 16*" #n "(%%rbx), %%xmm" #n "\n\t"
#define VECTOR_OUT(n) "movdqa %%xmm" #n ", 320+16*" #n "(%%rbx)\n\t"
#define GENERAL_IN(i, r) "movq 256+8*" #i "(%%rbx), %%" #r "\n\t"
#define GENERAL_OUT(i, r) "movq %%" #r ", 320+256+8*" #i "(%%rbx)\n\t"
#define ALL_VECTORS(do) do(0) do(1) do(2) do(3) do(4) do(5) do(6) do(7) do(8) do(9) do(10) do(11) do(12) do(13) do(14) do(15)
#define ALL_GENERAL(do) do(0, r8) do(1, r9) do(2, r10) do(3, r12) do(4, r13) do(5, r14) do(6, r15)

/*
 * Fills xmm0-15 and the free general registers with numbers made from `seed`, stores `value` to *word (a
 * write fault, where the page is armed), does system call `number` with the arguments (pause, NULL), and
 * reports whether every register that the call must preserve was preserved. In assembly, because a compiler spills
 * registers around a call, and spilled values cannot get lost. *got is the call's result or -errno.
 */
static inline bool registers_survive(uint64_t seed, uint64_t *word, uint64_t value, long number, int64_t *got)
{
	_Alignas(16) struct registers set[2];  /* before, after */
	const struct timespec pause = {0, 1000000};
	const void *rdi = &pause;
	uint64_t numbers[40], *rdx = word, rsi = 0;
	int64_t rax = number;

	_Static_assert(sizeof(struct registers) == 320, "the assembly counts on it");
	for (size_t i = 0; i < 40; i++)
		numbers[i] = mix64(seed + i);
	memcpy(&set[0], numbers, sizeof(set[0]));
	memset(&set[1], 0, sizeof(set[1]));
	set[1].padding = set[0].padding;
	__asm__ volatile(
		ALL_VECTORS(VECTOR_IN) ALL_GENERAL(GENERAL_IN)
		"movq %%rcx, (%%rdx)\n\t"
		"syscall\n\t"
		ALL_VECTORS(VECTOR_OUT) ALL_GENERAL(GENERAL_OUT)
		: "+a"(rax), "+D"(rdi), "+S"(rsi), "+d"(rdx), "+c"(value)
		: "b"(set)
		: "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15", "memory", "cc", "xmm0", "xmm1", "xmm2", "xmm3",
		  "xmm4", "xmm5", "xmm6", "xmm7", "xmm8", "xmm9", "xmm10", "xmm11", "xmm12", "xmm13", "xmm14", "xmm15");
	*got = rax;
	return !memcmp(&set[0], &set[1], sizeof(set[0])) && rdi == &pause && rsi == 0 && rdx == word;
}

#else

static inline uint64_t read_ticks(void)
{
	return now_ns();
}

/* Elsewhere only the write and the call are checked. */
static inline bool registers_survive(uint64_t seed, uint64_t *word, uint64_t value, long number, int64_t *got)
{
	const struct timespec pause = {0, 1000000};
	long result;

	(void)seed;
	*(volatile uint64_t *)word = value;
	result = syscall(number, &pause, NULL);
	*got = result < 0 ? -errno : result;
	return true;
}

#endif
#endif
