/*
 * Programs that a careless tracer kills. Usage: odd MODE FILE; they end with 0 when the first byte of FILE is no
 * longer 0, and only then. They print their PID first. MODE is one of
 *   dispatch         has its own system calls sent to a handler (syscall user dispatch, as Wine does)
 *   filter-last      its first thread has ended; the one that is left has a seccomp filter that kills
 *   filter-low       the thread with the lowest number has that filter
 *   filter-all       every thread has that filter
 *   full             all descriptors are in use
 *   full-threads     the same, and another thread opens and closes one all the time
 *   no-vdso          has unmapped what the kernel gave it, and mapped 16 TiB of executable nothing
 *   small-stacks     runs on a stack of 8 KiB in the middle of an array that another thread uses
 *   deaf             ignores SIGTRAP
 *   handler          its first thread is in a signal handler, on an alternate stack
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <time.h>
#include <ucontext.h>
#include <unistd.h>

#ifndef PR_SET_SYSCALL_USER_DISPATCH
#define PR_SET_SYSCALL_USER_DISPATCH 59
#endif

static volatile char *flag, *area;

static _Noreturn void fail(const char *what)
{
	perror(what);
	exit(2);
}

static void *map(size_t bytes, int protection)
{
	void *memory = mmap(NULL, bytes, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);

	if (memory == MAP_FAILED)
		fail("mmap");
	return memory;
}

static void greet(void)
{
	printf("%d\n", getpid());
	fflush(stdout);
}

static void touch_until_told(void)
{
	const struct timespec pause = {0, 1000000};

	for (unsigned i = 0; !*flag; i++) {
		area[4096 * (i % 64)]++;
		nanosleep(&pause, NULL);
	}
}

/* ---- dispatch ---- */

static volatile char selector;
static volatile unsigned long caught;

static void on_call(int number)
{
	(void)number;
	selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	caught++;
}

static int dispatch(void)
{
	struct sigaction action = {.sa_handler = on_call};

	sigaction(SIGSYS, &action, NULL);
	if (prctl(PR_SET_SYSCALL_USER_DISPATCH, 1, 0, 0, &selector))
		fail("prctl");
	greet();
	while (!*flag) {
		selector = SYSCALL_DISPATCH_FILTER_BLOCK; /* code that is foreign, and makes no call */
		for (volatile unsigned i = 0; i < 100000; i++)
			area[4096 * (i % 64)] = (char)i;
		selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	}
	selector = SYSCALL_DISPATCH_FILTER_BLOCK;
	syscall(SYS_getpid);                   /* for the handler */
	selector = SYSCALL_DISPATCH_FILTER_ALLOW;
	return caught == 1 ? 0 : 3;
}

/* ---- filters ---- */

static void filter(void)
{
	struct sock_filter code[] = {
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_clock_nanosleep, 6, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_nanosleep, 5, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit_group, 4, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_exit, 3, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_restart_syscall, 2, 0),
		BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_rt_sigreturn, 1, 0),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
		BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
	};
	struct sock_fprog program = {sizeof(code) / sizeof(*code), code};

	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) || syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program))
		fail("seccomp");
}

static void *filtered(void *arg)
{
	(void)arg;
	filter();
	touch_until_told();
	syscall(SYS_exit_group, 0);
	return NULL;
}

/* A thread with the number that was asked for, in bare assembly, as no library can start one. */
static __attribute__((noinline, optimize("no-stack-protector"))) void low_thread(void)
{
	filter();
	touch_until_told();
	syscall(SYS_exit_group, 0);
}

static int filter_low(void)
{
	char *stack = map(1 << 18, PROT_READ | PROT_WRITE);
	pid_t number = 301;
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_FS | CLONE_FILES | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM,
		.stack = (uint64_t)stack,
		.stack_size = (1 << 18) - 64,
		.set_tid = (uint64_t)&number,
		.set_tid_size = 1,
	};
	long result = -1;

	for (; result < 0 && number < getpid(); number++) {
		register void (*begin)(void) __asm__("r12") = low_thread;

		__asm__ volatile("syscall\n\ttest %%rax, %%rax\n\tjnz 1f\n\txor %%ebp, %%ebp\n\tcall *%%r12\n\thlt\n1:"
				 : "=a"(result)
				 : "a"(SYS_clone3), "D"(&args), "S"(sizeof(args)), "r"(begin)
				 : "rcx", "r11", "memory");
	}
	if (result < 0)
		return 4;
	greet();
	for (;;)
		pause();
}

/* ---- descriptors ---- */

static void *open_and_close(void *arg)
{
	(void)arg;
	while (!*flag) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		if (fd >= 0)
			close(fd);
	}
	return NULL;
}

static int full(bool threads)
{
	struct rlimit limit = {64, 64};
	pthread_t thread;
	int last = 0;

	setrlimit(RLIMIT_NOFILE, &limit);
	for (int fd; (fd = open("/dev/null", O_RDONLY)) >= 0;)
		last = fd;
	if (threads) {
		close(last);
		if (pthread_create(&thread, NULL, open_and_close, NULL))
			fail("thread");
	}
	greet();
	touch_until_told();
	for (int fd = 0; fd < (threads ? last : 64); fd++)
		if (fcntl(fd, F_GETFD) < 0)
			return 5;                  /* one of them was closed */
	return 0;
}

/* ---- code ---- */

static int no_vdso(void)
{
	const size_t step = (size_t)1 << 44;
	char *vdso = (char *)getauxval(AT_SYSINFO_EHDR);

	greet();
	map(step, PROT_READ | PROT_EXEC);
	if (munmap(vdso, 8192))
		fail("munmap");
	for (volatile unsigned i = 0; !*flag; i++) {
		area[4096 * (i % 64)]++;
		syscall(SYS_sched_yield);
	}
	return 0;
}

/* ---- small stacks ---- */

static char stacks[16][8192] __attribute__((aligned(4096)));
static volatile bool spoilt;

static void *neighbour(void *arg)
{
	volatile uint64_t *below = (volatile uint64_t *)stacks[7];

	(void)arg;
	for (uint64_t n = 1; !*flag; n++) {    /* nobody else may write there */
		for (int i = 0; i < 1024; i++)
			below[i] = n + (uint64_t)i;
		for (int i = 0; i < 1024; i++)
			if (below[i] != n + (uint64_t)i)
				spoilt = true;
	}
	return NULL;
}

static int small_stacks(void)
{
	ucontext_t small, back;
	pthread_t thread;

	pthread_create(&thread, NULL, neighbour, NULL);
	getcontext(&small);
	small.uc_stack.ss_sp = stacks[8];
	small.uc_stack.ss_size = sizeof(stacks[8]);
	small.uc_link = &back;
	makecontext(&small, touch_until_told, 0);
	greet();
	swapcontext(&back, &small);
	pthread_join(thread, NULL);
	return spoilt ? 6 : 0;
}

/* ---- an alternate stack ---- */

static void on_signal(int number)
{
	(void)number;
	touch_until_told();
}

static void *idler(void *arg)
{
	(void)arg;
	while (!*flag)
		usleep(1000);
	return NULL;
}

static int handler(void)
{
	struct sigaction action = {.sa_handler = on_signal, .sa_flags = SA_ONSTACK};
	stack_t stack = {.ss_sp = map(1 << 16, PROT_READ | PROT_WRITE), .ss_size = 1 << 16};
	pthread_t thread;

	pthread_create(&thread, NULL, idler, NULL);
	sigaltstack(&stack, NULL);
	sigaction(SIGUSR1, &action, NULL);
	greet();
	raise(SIGUSR1);
	return 0;
}

int main(int argc, char **argv)
{
	pthread_t thread;
	int fd;

	if (argc < 3 || (fd = open(argv[2], O_RDONLY)) < 0)
		fail("usage: odd MODE FILE");
	flag = mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0);
	area = map(1 << 20, PROT_READ | PROT_WRITE);
	if (!strcmp(argv[1], "dispatch"))
		return dispatch();
	if (!strcmp(argv[1], "filter-low"))
		return filter_low();
	if (!strncmp(argv[1], "full", 4))
		return full(argv[1][4]);
	if (!strcmp(argv[1], "no-vdso"))
		return no_vdso();
	if (!strcmp(argv[1], "small-stacks"))
		return small_stacks();
	if (!strcmp(argv[1], "handler"))
		return handler();
	if (!strcmp(argv[1], "deaf")) {
		signal(SIGTRAP, SIG_IGN);
		greet();
		touch_until_told();
		return 0;
	}
	if (!strcmp(argv[1], "filter-all")) {
		greet();
		filtered(NULL);
	}
	greet();                               /* filter-last */
	pthread_create(&thread, NULL, filtered, NULL);
	syscall(SYS_exit, 0);
	return 1;
}
