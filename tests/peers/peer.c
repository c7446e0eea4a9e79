// A peer that does as it is told: one command a line, one line in return.
//
// An access that ends in a signal returns its name, its code and its offset in the mapping; a system call that fails, the
// name of its error.
#include "peer.h"
#include "pins.h"
#include "calls.h"

static size_t len;
static char *maps['z' + 1];

static void reply(const char *format, ...)
{
	va_list args;
	va_start(args, format);
	vdprintf(CONTROL, format, args);
	va_end(args);
	dprintf(CONTROL, "\n");
}

static void failed(void)
{
	static const struct { int number; const char *name; } names[] = {
		{EFAULT, "EFAULT"}, {EPERM, "EPERM"}, {EACCES, "EACCES"}, {EINVAL, "EINVAL"}, {EAGAIN, "EAGAIN"}, {ENOMEM, "ENOMEM"},
		{EBUSY, "EBUSY"}, {ENOSYS, "ENOSYS"}, {EBADF, "EBADF"}, {EOPNOTSUPP, "EOPNOTSUPP"}, {ENOENT, "ENOENT"},
	};
	for (size_t i = 0; i < sizeof names / sizeof *names; i++)
		if (names[i].number == errno)
			return reply("%s", names[i].name);
	reply("errno %d", errno);
}

static void returned(long result)
{
	result < 0 ? failed() : reply("%ld", result);
}

static void faulted(const char *at)
{
	const char *name = fault_signal == SIGBUS ? "SIGBUS" : "SIGSEGV";
	if (fault_signal == SIGBUS && fault_code == BUS_ADRERR)
		reply("SIGBUS BUS_ADRERR at %#lx", (long)(fault_at - at));
	else
		reply("%s code %d at %#lx", name, fault_code, (long)(fault_at - at));
}

// What one load of each page gets, at an offset that differs from page to page.
static void load_all(char *at)
{
	size_t refused = 0, values = 0, wrong = 0;
	uint64_t value = 0, one;
	for (size_t page = 0; page < len; page += PAGE) {
		char *word = at + page + page / PAGE * 8 % PAGE;
		if (!loads(word, &one)) {
			refused++;
			wrong += fault_signal != SIGBUS || fault_code != BUS_ADRERR || fault_at != word;
		} else if (values++ == 0) {
			value = one;
		} else {
			wrong += value != one;
		}
	}
	if (wrong == 0 && values == 0)
		reply("SIGBUS BUS_ADRERR everywhere");
	else if (wrong == 0 && refused == 0)
		reply("%#lx everywhere", value);
	else
		reply("%zu refused, %zu loaded, %zu wrong", refused, values, wrong);
}

// The child goes on with the conversation, and the parent waits for its end.
static void take_over(void)
{
	pid_t child = fork();
	if (child > 0) {
		waitpid(child, 0, 0);
		_exit(0);
	}
	returned(child);
}

static int receive(void)
{
	char byte, space[CMSG_SPACE(sizeof(int))];
	struct iovec vec = {&byte, 1};
	struct msghdr message = {.msg_iov = &vec, .msg_iovlen = 1, .msg_control = space, .msg_controllen = sizeof space};
	int fd = -1;
	if (recvmsg(CONTROL, &message, 0) == 1 && CMSG_FIRSTHDR(&message))
		memcpy(&fd, CMSG_DATA(CMSG_FIRSTHDR(&message)), sizeof fd);
	return fd;
}

static int reopen(int fd, int how)
{
	char path[64];
	snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
	return open(path, how);
}

// At a multiple of a huge page, so that it can have some.
static char *map_at(int fd, int rights, int kind)
{
	char *at = mmap(0, len + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	at += -(unsigned long)at % HUGE;
	return mmap(at, len, rights, kind | MAP_FIXED, fd, 0);
}

// Maps the descriptor so many times, with every page in the page tables. Returns how many times it could.
static long map_many(long count)
{
	for (long done = 0; done < count; done++)
		if (mmap(0, len, PROT_READ, MAP_SHARED | MAP_POPULATE, WINDOW, 0) == MAP_FAILED)
			return done;
	return count;
}

static void *remap(char *at)
{
	char *to = mmap(0, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to);
}

static void obey(const char *line)
{
	char verb[32] = "", which[8] = "";
	unsigned long a = 0, b = 0;
	sscanf(line, "%31s %7s %li %li", verb, which, (long *)&a, (long *)&b);
	// A mapping by its letter, or a descriptor by its number.
	char **map = &maps[which[0] & 0x7f];
	char *at = *map;
	int fd = atoi(which);
	uint64_t value = 0;
#define IS(name) (strcmp(verb, name) == 0)
	if (IS("map") || IS("map-ro") || IS("map-private")) {
		int rights = IS("map-ro") ? PROT_READ : PROT_READ | PROT_WRITE;
		*map = map_at((int)a, rights, IS("map-private") ? MAP_PRIVATE : MAP_SHARED);
		*map == MAP_FAILED ? failed() : reply("ok");
	} else if (IS("load"))
		loads(at + a, &value) ? reply("%#lx", value) : faulted(at);
	else if (IS("load-byte"))
		loads_byte(at + a, &value) ? reply("%#lx", value) : faulted(at);
	else if (IS("store"))
		stores(at + a, b) ? reply("ok") : faulted(at);
	else if (IS("load-all"))
		load_all(at);
	else if (IS("many"))
		returned(map_many((long)a));
	else if (IS("address"))
		reply("%lu", (unsigned long)at);
	else if (IS("remap"))
		(*map = remap(at)) == MAP_FAILED ? failed() : reply("ok");
	else if (IS("lock"))
		returned(mlock(at, len));
	else if (IS("advise"))
		returned(madvise(at, len, (int)a));
	else if (IS("write"))
		returned(write_from(at + a, b));
	else if (IS("read"))
		returned(read_into(at + a, b));
	else if (IS("direct"))
		returned(direct_write_from(at + a, b));
	else if (IS("block-in-write"))
		returned(block_in_write(at, len));
	else if (IS("block-in-read"))
		returned(block_in_read(at, a));
	else if (IS("unblock-write"))
		returned(unblock_write(strtoul(which, 0, 0)));
	else if (IS("unblock-read"))
		returned(unblock_read(strtoul(which, 0, 0)));
	else if (IS("vmsplice"))
		returned(into_pipe(at + a));
	else if (IS("from-pipe"))
		out_of_pipe(&value) < 0 ? failed() : reply("%#lx", value);
	else if (IS("ring"))
		returned(register_buffer(at + a, PAGE));
	else if (IS("from-ring"))
		load_by_ring(&value) < 0 ? failed() : reply("%#lx", value);
	else if (IS("to-ring"))
		returned(store_by_ring(strtoul(which, 0, 0)));
	else if (IS("fork"))
		take_over();
	else if (IS("receive"))
		returned(receive());
	else if (IS("reopen"))
		returned(reopen(fd, O_RDWR));
	else if (IS("reopen-ro"))
		returned(reopen(fd, O_RDONLY));
	else if (IS("close"))
		returned(close(fd));
	else if (IS("truncate"))
		returned(ftruncate(fd, (off_t)a));
	else if (IS("punch"))
		returned(fallocate(fd, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, (off_t)a, (off_t)b));
	else if (IS("seal"))
		returned(fcntl(fd, F_ADD_SEALS, (int)a));
	else if (IS("flags"))
		returned(fcntl(fd, F_SETFL, (int)a));
	else if (IS("pwrite"))
		returned(pwrite(fd, &b, sizeof b, (off_t)a));
	else
		reply("no such command: %s", verb);
}

int main(int count, char **args)
{
	(void)count;
	len = strtoul(args[1], 0, 0);
	catch_faults();
	char line[256];
	size_t filled = 0;
	// A byte at a time, so that nothing of a message with a descriptor is read early.
	while (read(CONTROL, line + filled, 1) == 1) {
		if (line[filled] != '\n') {
			filled += filled + 1 < sizeof line;
			continue;
		}
		line[filled] = 0;
		filled = 0;
		obey(line);
	}
}
