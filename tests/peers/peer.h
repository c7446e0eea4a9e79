// What all peers have in common. A peer knows nothing of the crate: it has a descriptor, and maps it.
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

// The descriptor that the region's owner has handed over, as standard input.
#define WINDOW 0
// A socket to the test, as standard output.
#define CONTROL 1
#define PAGE 4096ul
#define HUGE (2ul << 20)

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif

// The last signal of an access, in this thread.
static __thread sigjmp_buf after_fault;
static __thread volatile int fault_signal, fault_code;
static __thread char *volatile fault_at;

static void caught(int signal, siginfo_t *info, void *context)
{
	(void)context;
	fault_signal = signal;
	fault_code = info->si_code;
	fault_at = info->si_addr;
	siglongjmp(after_fault, 1);
}

static void catch_faults(void)
{
	struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO | SA_NODEFER};
	sigaction(SIGBUS, &action, 0);
	sigaction(SIGSEGV, &action, 0);
}

// True if the access was made, false if it ended in a signal.
__attribute__((noinline)) static int loads(const void *at, uint64_t *value)
{
	if (sigsetjmp(after_fault, 0) != 0)
		return 0;
	*value = *(const volatile uint64_t *)at;
	return 1;
}

__attribute__((noinline)) static int loads_byte(const void *at, uint64_t *value)
{
	if (sigsetjmp(after_fault, 0) != 0)
		return 0;
	*value = *(const volatile uint8_t *)at;
	return 1;
}

__attribute__((noinline)) static int stores(void *at, uint64_t value)
{
	if (sigsetjmp(after_fault, 0) != 0)
		return 0;
	*(volatile uint64_t *)at = value;
	return 1;
}

static void *map_window(int fd, size_t len, int rights, int kind)
{
	void *at = mmap(0, len, rights, kind, fd, 0);
	if (at == MAP_FAILED) {
		fprintf(stderr, "peer: mmap: %s\n", strerror(errno));
		exit(3);
	}
	return at;
}

// A private file to write to and to read from.
static int scratch(void)
{
	return (int)syscall(SYS_memfd_create, "scratch", 0);
}
