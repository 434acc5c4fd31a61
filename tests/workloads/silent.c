/*
 * silent DIRECTORY: a target that maps a file of a FUSE server that answers all but reads. The server is this process, in
 * a mount namespace of its own; the target is its child, ends with it, and writes to private memory all the time.
 * The answer that comes unasked has the PID of the target.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/fuse.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <unistd.h>

enum { SIZE = 1 << 20, PAGE = 4096 };
static int device;

static void fail(const char *what)
{
	printf("{\"ok\":false,\"error\":\"%s: %s\"}\n", what, strerror(errno));
	exit(1);
}

static void reply(uint64_t unique, int error, const void *data, size_t size)
{
	struct {
		struct fuse_out_header head;
		char data[PAGE];
	} out = { .head = { .len = sizeof out.head + size, .error = error, .unique = unique } };

	if (size)
		memcpy(out.data, data, size);
	if (write(device, &out, out.head.len) < 0 && errno != ENOENT)
		exit(1);
}

static struct fuse_attr attributes(uint64_t inode)
{
	return (struct fuse_attr){ .ino = inode, .mode = inode == 1 ? 040755 : 0100644, .nlink = 1,
				   .size = SIZE, .blocks = SIZE / 512, .blksize = PAGE };
}

static void target(const char *directory)
{
	char path[4096];
	close(device);
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	snprintf(path, sizeof path, "%s/silent-file", directory);
	int file = open(path, O_RDONLY);
	if (file < 0)
		fail(path);
	if (mmap(NULL, SIZE, PROT_READ, MAP_SHARED, file, 0) == MAP_FAILED)
		fail("mmap");
	volatile char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	printf("{\"ok\":true,\"pid\":%d}\n", getpid());
	fflush(stdout);
	for (unsigned n = 0;; n++) {
		memory[PAGE * (n % (SIZE / PAGE))]++;
		usleep(1000);
	}
}

static void answer(const struct fuse_in_header *in)
{
	switch (in->opcode) {
	case FUSE_INIT: {
		struct fuse_init_out out = { .major = 7, .minor = 31, .max_write = PAGE };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_GETATTR: {
		struct fuse_attr_out out = { .attr = attributes(in->nodeid) };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_LOOKUP: {
		struct fuse_entry_out out = { .nodeid = 2, .attr = attributes(2) };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_OPEN: {
		struct fuse_open_out out = { 0 };
		reply(in->unique, 0, &out, sizeof out);
		break;
	}
	case FUSE_READ: case FUSE_FORGET: case FUSE_BATCH_FORGET: case FUSE_INTERRUPT:
		break;
	default:
		reply(in->unique, -ENOSYS, NULL, 0);
	}
}

int main(int argc, char **argv)
{
	static char request[SIZE];
	char options[100];

	if (argc != 2)
		return 2;
	device = open("/dev/fuse", O_RDWR | O_CLOEXEC);
	if (device < 0)
		fail("/dev/fuse");
	if (unshare(CLONE_NEWNS) || mount("none", "/", NULL, MS_REC | MS_PRIVATE, NULL))
		fail("mount namespace");
	snprintf(options, sizeof options, "fd=%d,rootmode=40000,user_id=0,group_id=0", device);
	if (mount("silent", argv[1], "fuse", MS_NOSUID | MS_NODEV, options))
		fail("mount");
	if (fork() == 0)
		target(argv[1]);
	for (;;) {
		ssize_t size = read(device, request, sizeof request);
		if (size < 0 && errno != EINTR)
			return 1;
		if (size >= (ssize_t)sizeof(struct fuse_in_header))
			answer((const struct fuse_in_header *)request);
	}
}
