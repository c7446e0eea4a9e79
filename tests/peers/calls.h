// System calls that read or write a mapping: whole ones, and ones that are under way for as long as the test wants.

static long write_from(char *at, size_t len)
{
	int file = scratch();
	long result = pwrite(file, at, len, 0);
	int error = errno;
	close(file);
	errno = error;
	return result;
}

static long read_into(char *at, size_t len)
{
	int file = scratch();
	for (size_t done = 0; done < len; done += PAGE) {
		char page[PAGE];
		memset(page, 0x77, sizeof page);
		if (pwrite(file, page, PAGE, (off_t)done) < 0)
			return -1;
	}
	long result = pread(file, at, len, 0);
	int error = errno;
	close(file);
	errno = error;
	return result;
}

// Past the page cache: the device reads the mapping's pages, which are pinned meanwhile.
static long direct_write_from(char *at, size_t len)
{
	char path[] = "peer-direct-XXXXXX";
	int file = mkostemp(path, O_DIRECT);
	if (file < 0)
		return -1;
	unlink(path);
	long result = pwrite(file, at, len, 0);
	int error = errno;
	close(file);
	errno = error;
	return result;
}

// A system call that has begun, in a thread of its own.
static struct {
	pthread_t thread;
	int pipe[2];
	char *at;
	size_t len;
	long result;
	_Atomic int tid;
} call;

static void *call_write(void *unused)
{
	call.tid = (int)syscall(SYS_gettid);
	call.result = write(call.pipe[1], call.at, call.len);
	close(call.pipe[1]);
	return unused;
}

static void *call_read(void *unused)
{
	call.tid = (int)syscall(SYS_gettid);
	call.result = read(call.pipe[0], call.at, call.len);
	if (call.result < 0)
		call.result = -errno;
	return unused;
}

// Returns when the thread sleeps in its call: /proc says S, twice, as it may sleep for a moment on its way there.
static long begin(void *(*body)(void *), char *at, size_t len)
{
	call.at = at;
	call.len = len;
	call.tid = 0;
	if (pipe(call.pipe) < 0 || pthread_create(&call.thread, 0, body, 0) != 0)
		return -1;
	for (int slept = 0; slept < 2; usleep(2000)) {
		char path[64], text[256] = "";
		snprintf(path, sizeof path, "/proc/self/task/%d/stat", call.tid);
		int file = call.tid ? open(path, O_RDONLY) : -1;
		if (file < 0)
			continue;
		long n = read(file, text, sizeof text - 1);
		close(file);
		char *state = n > 0 ? strrchr(text, ')') : 0;
		slept = state && state[2] == 'S' ? slept + 1 : 0;
	}
	return 0;
}

// write(2) from the mapping, which waits for room in a pipe.
static long block_in_write(char *at, size_t len)
{
	return begin(call_write, at, len);
}

// Empties the pipe. Returns how many of the words that came are `word`, or 1000 plus that many if the call wrote all.
static long unblock_write(uint64_t word)
{
	uint64_t part[512];
	long seen = 0, n;
	while ((n = read(call.pipe[0], part, sizeof part)) > 0)
		for (long i = 0; i < n / 8; i++)
			seen += part[i] == word;
	pthread_join(call.thread, 0);
	close(call.pipe[0]);
	return call.result == (long)call.len ? seen + 1000 : seen;
}

// read(2) into the mapping, which waits for a pipe to be filled.
static long block_in_read(char *at, size_t len)
{
	return begin(call_read, at, len);
}

// Fills the pipe with `word`. Returns what the call returned.
static long unblock_read(uint64_t word)
{
	uint64_t part[512];
	for (int i = 0; i < 512; i++)
		part[i] = word;
	if (write(call.pipe[1], part, sizeof part) < 0)
		return -1;
	pthread_join(call.thread, 0);
	close(call.pipe[0]);
	close(call.pipe[1]);
	if (call.result < 0)
		errno = (int)-call.result;
	return call.result < 0 ? -1 : call.result;
}
