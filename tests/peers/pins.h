// Pages that a peer keeps from others' view: in a pipe by vmsplice(2), and as a fixed buffer of an io_uring.
#include <linux/io_uring.h>

static int held_by[2];

static long into_pipe(char *at)
{
	struct iovec vec = {at, PAGE};
	// An empty one does not wait for a writer.
	if (pipe2(held_by, O_NONBLOCK) < 0)
		return -1;
	return vmsplice(held_by[1], &vec, 1, 0);
}

// The first word of the page that the pipe holds.
static long out_of_pipe(uint64_t *value)
{
	long n = read(held_by[0], value, sizeof *value);
	close(held_by[0]);
	close(held_by[1]);
	return n == sizeof *value ? n : -1;
}

static struct {
	int fd, file;
	char *at;
	_Atomic unsigned *sq_tail, *cq_head, *cq_tail;
	unsigned *sq_array, sq_mask, cq_mask;
	struct io_uring_sqe *sqes;
	struct io_uring_cqe *cqes;
} ring;

static long register_buffer(char *at, size_t len)
{
	struct io_uring_params params = {0};
	struct iovec vec = {at, len};
	ring.fd = (int)syscall(SYS_io_uring_setup, 4, &params);
	if (ring.fd < 0)
		return -1;
	int rights = PROT_READ | PROT_WRITE;
	char *sq = mmap(0, params.sq_off.array + 64, rights, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQ_RING);
	char *cq = mmap(0, params.cq_off.cqes + 8 * sizeof *ring.cqes, rights, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_CQ_RING);
	ring.sqes = mmap(0, 4 * sizeof *ring.sqes, rights, MAP_SHARED | MAP_POPULATE, ring.fd, IORING_OFF_SQES);
	if (sq == MAP_FAILED || cq == MAP_FAILED || ring.sqes == MAP_FAILED)
		return -1;
	ring.sq_tail = (void *)(sq + params.sq_off.tail);
	ring.sq_array = (void *)(sq + params.sq_off.array);
	ring.sq_mask = *(unsigned *)(sq + params.sq_off.ring_mask);
	ring.cq_head = (void *)(cq + params.cq_off.head);
	ring.cq_tail = (void *)(cq + params.cq_off.tail);
	ring.cqes = (void *)(cq + params.cq_off.cqes);
	ring.cq_mask = *(unsigned *)(cq + params.cq_off.ring_mask);
	ring.at = at;
	ring.file = scratch();
	return syscall(SYS_io_uring_register, ring.fd, IORING_REGISTER_BUFFERS, &vec, 1);
}

// One transfer between the first word of the buffer and the scratch file.
static long transfer(int opcode)
{
	unsigned tail = *ring.sq_tail, index = tail & ring.sq_mask;
	struct io_uring_sqe *sqe = &ring.sqes[index];
	memset(sqe, 0, sizeof *sqe);
	sqe->opcode = (uint8_t)opcode;
	sqe->fd = ring.file;
	sqe->addr = (uint64_t)ring.at;
	sqe->len = sizeof(uint64_t);
	ring.sq_array[index] = index;
	*ring.sq_tail = tail + 1;
	if (syscall(SYS_io_uring_enter, ring.fd, 1, 1, IORING_ENTER_GETEVENTS, 0, 0) < 0)
		return -1;
	int result = ring.cqes[*ring.cq_head & ring.cq_mask].res;
	(*ring.cq_head)++;
	if (result < 0)
		errno = -result;
	return result < 0 ? -1 : result;
}

static long load_by_ring(uint64_t *value)
{
	return transfer(IORING_OP_WRITE_FIXED) < 0 ? -1 : pread(ring.file, value, sizeof *value, 0);
}

static long store_by_ring(uint64_t value)
{
	return pwrite(ring.file, &value, sizeof value, 0) < 0 ? -1 : transfer(IORING_OP_READ_FIXED);
}
