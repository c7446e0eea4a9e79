// Looks for the owner's stamp, and stores poison, in one way without pause.
//
// prober LEN WAY STAMP. The owner stamps the content only while no peer can reach it.
#include "peer.h"
#include "log.h"
#include "pins.h"

static size_t len;
static uint64_t stamp;
static struct log *log_at;
static char *at;

static void seen(size_t page, uint64_t word)
{
	log_at->made++;
	if (word == stamp)
		violation(log_at, page, word, 0);
}

static void refused(long made)
{
	if (made < 0)
		log_at->refused++;
}

static void load_all(void)
{
	uint64_t word;
	for (size_t page = 0; page < len / PAGE; page++)
		loads(at + page * PAGE, &word) ? seen(page, word) : refused(-1);
}

static void store_all(void)
{
	for (size_t page = 0; page < len / PAGE; page++)
		stores(at + page * PAGE + 16, ~stamp) ? seen(page, 0) : refused(-1);
}

// write(2) from the mapping into a file, by the page cache or past it.
static void write_all(int how)
{
	static char *copy;
	char path[] = "peer-probe-XXXXXX";
	int file = how ? mkostemp(path, how) : scratch();
	if (how)
		unlink(path);
	if (!copy)
		copy = aligned_alloc(PAGE, len);
	long written = pwrite(file, at, len, 0);
	refused(written);
	long got = written > 0 ? pread(file, copy, (size_t)written, 0) : 0;
	for (long from = 0; from < got; from += PAGE)
		seen((size_t)from / PAGE, *(uint64_t *)(copy + from));
	close(file);
}

// read(2) of poison into the words that the owner watches.
static void read_all(void)
{
	uint64_t poison = ~stamp;
	int file = scratch();
	refused(pwrite(file, &poison, sizeof poison, 0));
	for (size_t page = 0; page < len / PAGE; page++) {
		long got = pread(file, at + page * PAGE + 16, sizeof poison, 0);
		got < 0 ? refused(got) : seen(page, 0);
	}
	close(file);
}

static void splice_all(void)
{
	for (size_t page = 0; page < len / PAGE; page++) {
		uint64_t word = 0;
		long n = into_pipe(at + page * PAGE);
		refused(n);
		if (out_of_pipe(&word) > 0 && n > 0)
			seen(page, word);
	}
}

static void load_in_child(void)
{
	pid_t child = fork();
	if (child == 0) {
		load_all();
		store_all();
		_exit(0);
	}
	waitpid(child, 0, 0);
}

static void advise_all(void)
{
	refused(madvise(at, len, MADV_HUGEPAGE));
	refused(madvise(at, len, MADV_COLLAPSE));
	refused(mlock(at, len));
	refused(madvise(at, len, MADV_POPULATE_WRITE));
	load_all();
	munlock(at, len);
	refused(madvise(at, len, MADV_DONTNEED));
	load_all();
}

// Mapped anew, by a descriptor of its own, shared or private, and moved.
static void map_anew(uint64_t round)
{
	char *old = at;
	int fd = open("/proc/self/fd/0", round % 3 ? O_RDWR : O_RDONLY);
	int kind = round % 2 ? MAP_PRIVATE : MAP_SHARED;
	at = map_window(fd, len, round % 3 || kind == MAP_PRIVATE ? PROT_READ | PROT_WRITE : PROT_READ, kind);
	load_all();
	if (round % 3)
		store_all();
	at = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, mmap(0, len, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
	load_all();
	munmap(at, len);
	close(fd);
	at = old;
}

int main(int count, char **args)
{
	(void)count;
	len = strtoul(args[1], 0, 0);
	const char *way = args[2];
	stamp = strtoul(args[3], 0, 0);
	log_at = log_of(len);
	at = map_window(WINDOW, len, PROT_READ | PROT_WRITE, MAP_SHARED);
	if (strcmp(way, "collapse") == 0) {
		char *to = map_window(-1, len + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
		at = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to + -(unsigned long)to % HUGE);
	}
	catch_faults();
	log_at->at = (uint64_t)at;
	for (; !log_at->stop; log_at->passes++) {
#define IS(name) (strcmp(way, name) == 0)
		if (IS("load"))
			load_all();
		else if (IS("store"))
			store_all();
		else if (IS("write"))
			write_all(0);
		else if (IS("direct"))
			write_all(O_DIRECT);
		else if (IS("read"))
			read_all();
		else if (IS("vmsplice"))
			splice_all();
		else if (IS("fork"))
			load_in_child();
		else if (IS("advise"))
			advise_all();
		else if (IS("map"))
			map_anew(log_at->passes);
		else if (IS("collapse")) {
			if (madvise(at, len, MADV_COLLAPSE) == 0)
				log_at->made++;
			usleep(1000);
		} else if (IS("idle"))
			usleep(1000);
		else
			return 4;
	}
}
