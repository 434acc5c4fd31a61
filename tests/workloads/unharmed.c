/*
 * Notices whatever is done to it: each thread has a part of its own and counts what must never happen there.
 * Usage: unharmed MODE CROWD, with MODE one of
 *   stay     runs until its input ends
 *   fork     children all the time, from two threads; each reports a userfaultfd that it inherited
 *   exec     executes itself again every few milliseconds; errors are carried along
 * and CROWD a number of threads that only sleep and count. With UNHARMED_EINTR in its environment EINTR
 * is no error where the kernel documents it for a program that is stopped or frozen.
 */
#define _GNU_SOURCE
#include "common.h"
#include "registers.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MS 1000000L
#define REAL_TIME (SIGRTMIN + 3)
#define DEEP_WORDS 6000                        /* of stack that a call of deep() fills and checks */

enum part {
	REGISTERS, EPOLL, EPOLL_MASK, SEMAPHORE, SIGWAIT, TIMED_RECV, TIMED_READ, SLEEP, FUTEX, POLL, PIPE, TIMER,
	QUEUE, FORCED, DESCRIPTORS, FORK, MEMORY, STACK, MASK, CROWD, PARTS
};
static const char *const part_name[PARTS] = {
	"registers", "epoll", "epoll_mask", "semaphore", "sigwait", "timed_recv", "timed_read", "sleep", "futex", "poll",
	"pipe", "timer", "queue", "forced", "descriptors", "fork", "memory", "stack", "mask", "crowd",
};

static bool tolerant;                          /* of EINTR, which who stops or freezes it causes */
static atomic_uint_fast64_t errors[PARTS], loops[PARTS];
static _Atomic int64_t detail[PARTS];          /* of the first error of each part */
static int event, masked_event, waiting[2], semaphore, receiving[2], reading[2], piped[2];
static pthread_t sigwaiter;
static char *alternate;
static size_t alternate_bytes = 1 << 16;
static atomic_uint_fast64_t ticks, queued;

static void wrong(enum part part, int64_t what)
{
	int64_t none = 0;

	if (what == EINTR && tolerant)
		return;
	atomic_fetch_add(&errors[part], 1);
	atomic_compare_exchange_strong(&detail[part], &none, what ? what : -1);
}

static void passed(enum part part)
{
	atomic_fetch_add(&loops[part], 1);
}

/* ---- what waits for the ticker ---- */

static void *epoll_part(void *masked)
{
	struct epoll_event wanted = {.events = EPOLLIN}, got;
	enum part part = masked ? EPOLL_MASK : EPOLL;
	int from = masked ? masked_event : event, fd = waiting[masked != NULL];
	uint64_t count;
	sigset_t during;

	pthread_sigmask(SIG_SETMASK, NULL, &during);
	sigaddset(&during, SIGUSR2);
	epoll_ctl(fd, EPOLL_CTL_ADD, from, &wanted);
	for (;;) {
		int n = masked ? epoll_pwait(fd, &got, 1, -1, &during) : epoll_wait(fd, &got, 1, 60000);

		if (n != 1)
			wrong(part, n < 0 ? errno : 1000);
		else if (read(from, &count, 8) != 8)
			wrong(part, errno);
		passed(part);
	}
	return NULL;
}

static void *semaphore_part(void *arg)
{
	struct sembuf take = {0, -1, 0};

	(void)arg;
	for (;;) {
		if (semop(semaphore, &take, 1))
			wrong(SEMAPHORE, errno);
		passed(SEMAPHORE);
	}
	return NULL;
}

static void *sigwait_part(void *arg)
{
	siginfo_t info;
	sigset_t set;

	(void)arg;
	sigemptyset(&set);
	sigaddset(&set, SIGUSR1);
	for (;;) {
		if (sigwaitinfo(&set, &info) != SIGUSR1)
			wrong(SIGWAIT, errno);
		passed(SIGWAIT);
	}
	return NULL;
}

static void *byte_part(void *arg)
{
	enum part part = (enum part)(intptr_t)arg;
	char byte;

	for (;;) {
		ssize_t n = part == TIMED_RECV ? recv(receiving[0], &byte, 1, 0)
			    : read(part == PIPE ? piped[0] : reading[0], &byte, 1);

		if (n != 1)
			wrong(part, n < 0 ? errno : 1000);
		passed(part);
	}
	return NULL;
}

static void *ticker(void *arg)
{
	const struct timespec pause = {0, MS};
	struct sembuf give = {0, 1, 0};
	const uint64_t one = 1;

	(void)arg;
	for (;;) {
		nanosleep(&pause, NULL);
		if (write(event, &one, 8) != 8 || write(masked_event, &one, 8) != 8 || semop(semaphore, &give, 1))
			die("ticker: %s", strerror(errno));
		if (send(receiving[1], "x", 1, MSG_DONTWAIT) < 0 && errno != EAGAIN)
			die("ticker: send: %s", strerror(errno));
		if (send(reading[1], "x", 1, MSG_DONTWAIT) < 0 && errno != EAGAIN)
			die("ticker: send: %s", strerror(errno));
		if (write(piped[1], "x", 1) < 0 && errno != EAGAIN)
			die("ticker: write: %s", strerror(errno));
		pthread_kill(sigwaiter, SIGUSR1);
		/* A semaphore has a largest value, and a part may be slower than this thread. */
		if (semctl(semaphore, 0, GETVAL) > 1000)
			semctl(semaphore, 0, SETVAL, 0);
	}
	return NULL;
}

/* ---- what waits for the clock ---- */

static void *sleep_part(void *arg)
{
	const struct timespec pause = {0, MS};
	uint64_t started;

	(void)arg;
	for (;;) {
		started = now_ns();
		if (clock_nanosleep(CLOCK_MONOTONIC, 0, &pause, NULL) || now_ns() - started < MS)
			wrong(SLEEP, errno);
		passed(SLEEP);
	}
	return NULL;
}

static void *futex_part(void *arg)
{
	const struct timespec pause = {0, MS};
	uint32_t word = 0;

	(void)arg;
	for (;;) {
		if (syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &pause, NULL, 0) != -1 || errno != ETIMEDOUT)
			wrong(FUTEX, errno);
		passed(FUTEX);
	}
	return NULL;
}

static void *poll_part(void *arg)
{
	(void)arg;
	for (;;) {
		if (poll(NULL, 0, 1))
			wrong(POLL, errno);
		passed(POLL);
	}
	return NULL;
}

/* ---- signals, on the first thread with its alternate stack ---- */

static void on_timer(int number)
{
	char here;

	(void)number;
	if (&here < alternate || &here >= alternate + alternate_bytes)
		wrong(TIMER, 1);               /* the alternate stack is no longer what it was */
	atomic_fetch_add(&ticks, 1);
	passed(TIMER);
}

static void on_queued(int number, siginfo_t *info, void *context)
{
	(void)number;
	(void)context;
	if ((uint64_t)(uintptr_t)info->si_value.sival_ptr != atomic_fetch_add(&queued, 1))
		wrong(QUEUE, (int64_t)(uintptr_t)info->si_value.sival_ptr);
	passed(QUEUE);
}

static atomic_uint_fast64_t forced;

static void on_forced(int number)
{
	(void)number;
	atomic_fetch_add(&forced, 1);
}

/* A signal that the kernel forces on programs, sent by one here: it is neither lost nor taken for a fault. */
static void *forced_part(void *arg)
{
	(void)arg;
	for (;;) {
		uint64_t before = forced, started = now_ns();

		kill(getpid(), SIGFPE);
		while (forced == before)
			if (now_ns() - started > 120 * 1000 * MS) {
				wrong(FORCED, 1);
				break;
			} else {
				usleep(100);
			}
		passed(FORCED);
		usleep(500);
	}
	return NULL;
}

/* ---- what only calculates ---- */

static void *registers_part(void *arg)
{
	uint64_t seed = 1, *word = arg;
	int64_t got;

	for (;; seed++) {
		long number = seed & 1 ? SYS_nanosleep : SYS_getpid;
		bool same = registers_survive(seed, word, seed, number, &got);

		if (!same || *word != seed || got != (number == SYS_getpid ? getpid() : 0))
			wrong(REGISTERS, got ? got : 1);
		passed(REGISTERS);
	}
	return NULL;
}

static __attribute__((noinline)) uint64_t deep(uint64_t seed, volatile uint64_t *words)
{
	uint64_t sum = 0;

	for (size_t i = 0; i < DEEP_WORDS; i++)
		words[i] = mix64(seed + i);
	sched_yield();
	for (size_t i = 0; i < DEEP_WORDS; i++)
		sum += words[i] != mix64(seed + i);
	return sum;
}

static void *stack_part(void *arg)
{
	sigset_t before, now;

	(void)arg;
	pthread_sigmask(SIG_SETMASK, NULL, &before);
	for (uint64_t seed = 1;; seed++) {
		volatile uint64_t words[DEEP_WORDS];

		if (deep(seed, words))
			wrong(STACK, (int64_t)seed);
		passed(STACK);
		pthread_sigmask(SIG_SETMASK, NULL, &now);
		if (memcmp(&before, &now, 8))
			wrong(MASK, *(int64_t *)&now);
		passed(MASK);
		if (seed % 8 == 0)
			usleep(1500);          /* most of a processor is left to others */
	}
	return NULL;
}

static void *memory_part(void *arg)
{
	uint64_t *words = arg;
	const size_t count = (1 << 20) / 8;

	for (uint64_t seed = 1;; seed++) {
		for (size_t i = 0; i < count; i += 64)
			words[i] = mix64(seed + i);
		usleep(500);
		for (size_t i = 0; i < count; i += 64)
			if (words[i] != mix64(seed + i))
				wrong(MEMORY, (int64_t)i);
		passed(MEMORY);
	}
	return NULL;
}

static bool has_userfaultfd(void)
{
	char name[40], target[80];

	for (int fd = 0; fd < 40; fd++) {
		ssize_t n;

		snprintf(name, sizeof(name), "/proc/self/fd/%d", fd);
		n = readlink(name, target, sizeof(target) - 1);
		if (n > 0 && (target[n] = 0, strstr(target, "userfaultfd")))
			return true;
	}
	return false;
}

static void *descriptors_part(void *arg)
{
	int first = open("/dev/null", O_RDONLY | O_CLOEXEC);

	(void)arg;
	close(first);
	for (;;) {
		int fd = open("/dev/null", O_RDONLY | O_CLOEXEC);

		if (fd != first)
			wrong(DESCRIPTORS, fd);
		close(fd);
		if (has_userfaultfd())
			wrong(DESCRIPTORS, -2);
		passed(DESCRIPTORS);
		usleep(1000);
	}
	return NULL;
}

static void *fork_part(void *arg)
{
	(void)arg;
	for (;;) {
		int status = 0;
		pid_t child = fork();

		if (child == 0)
			_exit(has_userfaultfd() ? 9 : 0);
		if (child < 0 || waitpid(child, &status, 0) != child || status)
			wrong(FORK, child < 0 ? errno : status);
		passed(FORK);
		usleep(1000);
	}
	return NULL;
}

static void *crowd_part(void *arg)
{
	(void)arg;
	for (;;) {
		if (usleep(2000))
			wrong(CROWD, errno);
		passed(CROWD);
	}
	return NULL;
}

/* ---- the program ---- */

static pthread_t start(void *(*part)(void *), void *arg)
{
	pthread_attr_t attributes;
	pthread_t thread;

	pthread_attr_init(&attributes);
	pthread_attr_setstacksize(&attributes, 256 << 10);
	if (pthread_create(&thread, &attributes, part, arg))
		die("cannot start a thread");
	return thread;
}

static void *map(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	if (memory == MAP_FAILED)
		die("mmap: %s", strerror(errno));
	return memory;
}

static void start_parts(const char *mode, int crowd, int kept)
{
	const struct timeval limit = {60, 0};

	event = eventfd(0, EFD_CLOEXEC);
	masked_event = eventfd(0, EFD_CLOEXEC);
	waiting[0] = epoll_create1(EPOLL_CLOEXEC);
	waiting[1] = epoll_create1(EPOLL_CLOEXEC);
	semaphore = kept >= 0 ? kept : semget(IPC_PRIVATE, 1, 0600);
	if (semaphore < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, receiving) ||
	    socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, reading) || pipe2(piped, O_CLOEXEC))
		die("%s", strerror(errno));
	fcntl(piped[1], F_SETFL, O_NONBLOCK);
	setsockopt(receiving[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	setsockopt(reading[0], SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
	start(epoll_part, NULL);
	start(epoll_part, (void *)1);
	start(semaphore_part, NULL);
	sigwaiter = start(sigwait_part, NULL);
	start(byte_part, (void *)TIMED_RECV);
	start(byte_part, (void *)TIMED_READ);
	start(byte_part, (void *)PIPE);
	start(sleep_part, NULL);
	start(futex_part, NULL);
	start(poll_part, NULL);
	start(registers_part, map(PAGE_BYTES));
	start(stack_part, NULL);
	start(memory_part, map(1 << 20));
	for (int i = 0; i < crowd; i++)
		start(crowd_part, NULL);
	if (!strcmp(mode, "fork")) {
		start(fork_part, NULL);
		start(fork_part, NULL);
	} else {
		start(descriptors_part, NULL); /* whose numbers nobody else may take */
	}
	start(ticker, NULL);
}

static void start_signals(void)
{
	struct sigaction timer = {.sa_handler = on_timer, .sa_flags = SA_ONSTACK | SA_RESTART};
	struct sigaction queue = {.sa_sigaction = on_queued, .sa_flags = SA_SIGINFO | SA_RESTART};
	struct sigaction force = {.sa_handler = on_forced, .sa_flags = SA_RESTART};
	struct itimerval every = {{0, 3000}, {0, 3000}};
	stack_t stack = {.ss_size = alternate_bytes};

	alternate = stack.ss_sp = map(alternate_bytes);
	sigaltstack(&stack, NULL);
	sigaction(SIGALRM, &timer, NULL);
	sigaction(REAL_TIME, &queue, NULL);
	sigaction(SIGFPE, &force, NULL);
	setitimer(ITIMER_REAL, &every, NULL);
}

static void status(void)
{
	uint64_t all = 0;

	printf("{\"loops\":{");
	for (int i = 0, n = 0; i < PARTS; i++)
		if (loops[i])
			printf("%s\"%s\":%lu", n++ ? "," : "", part_name[i], (unsigned long)loops[i]);
	printf("},\"errors\":{");
	for (int i = 0, n = 0; i < PARTS; i++) {
		all += errors[i];
		if (errors[i])
			printf("%s\"%s\":[%lu,%ld]", n++ ? "," : "", part_name[i], (unsigned long)errors[i], (long)detail[i]);
	}
	printf("},\"total\":%lu", (unsigned long)all);
}

/* What is carried on: the input, the output, the errors so far and the semaphore. */
static void execute_again(char **argv)
{
	uint64_t all = strtoull(argv[3], NULL, 10);
	sigset_t signals;
	char count[24], id[24];

	for (int i = 0; i < PARTS; i++)
		all += errors[i];
	sigfillset(&signals);
	sigprocmask(SIG_BLOCK, &signals, NULL); /* the timer goes on, its handler does not */
	snprintf(count, sizeof(count), "%lu", (unsigned long)all);
	snprintf(id, sizeof(id), "%d", semaphore);
	execl("/proc/self/exe", argv[0], argv[1], argv[2], count, id, NULL);
	die("exec: %s", strerror(errno));
}

static uint64_t sequence;

/* The first thread's own work: a signal with a number, now and then; true when a command is there. */
static bool wait_for_command(void)
{
	struct pollfd input = {.fd = 0, .events = POLLIN};
	struct timespec pause = {0, MS};
	int ready = ppoll(&input, 1, &pause, NULL);

	if (ready < 0 && errno != EINTR)
		wrong(TIMER, errno);
	if (sigqueue(getpid(), REAL_TIME, (union sigval){.sival_ptr = (void *)(uintptr_t)sequence}) == 0)
		sequence++;
	return ready > 0;
}

int main(int argc, char **argv)
{
	bool again = argc > 1 && !strcmp(argv[1], "exec"), first = argc < 4;
	char *arguments[] = {argv[0], argv[1], argv[2], argc > 3 ? argv[3] : "0", NULL};
	sigset_t signals;
	char letter;

	if (argc < 3)
		die("usage: unharmed MODE CROWD");
	tolerant = getenv("UNHARMED_EINTR") != NULL;
	setvbuf(stdout, NULL, _IOFBF, 1 << 16);
	/* All but the first thread leave the signals to it. */
	sigemptyset(&signals);
	sigaddset(&signals, SIGALRM);
	sigaddset(&signals, SIGUSR1);
	sigaddset(&signals, REAL_TIME);
	sigaddset(&signals, SIGFPE);
	pthread_sigmask(SIG_BLOCK, &signals, NULL);
	start_parts(argv[1], atoi(argv[2]), argc > 4 ? atoi(argv[4]) : -1);
	sigdelset(&signals, SIGUSR1);
	start_signals();
	start(forced_part, NULL);
	pthread_sigmask(SIG_UNBLOCK, &signals, NULL);
	if (first) {
		printf("{\"pid\":%d}\n", getpid());
		fflush(stdout);
	}
	for (int turn = 0;; turn++) {
		if (!wait_for_command()) {
			if (again && turn > 30)
				execute_again(arguments);
			continue;
		}
		if (read(0, &letter, 1) != 1)
			break;
		if (letter != '\n')
			continue;
		status();
		printf(",\"before\":%s}\n", arguments[3]);
		fflush(stdout);
	}
	semctl(semaphore, 0, IPC_RMID);
	_exit(0);
}
