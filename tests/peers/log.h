// What a peer that runs by itself tells the test, in memory that has nothing to do with the region.
struct log {
	_Atomic uint64_t stop;
	// Rounds through all pages.
	_Atomic uint64_t passes;
	// Accesses that were made, and that were refused as they should be.
	_Atomic uint64_t made, refused;
	// Violations, and what the last one was about.
	_Atomic uint64_t wrong, wrong_page, wrong_got, wrong_wanted;
	// The address of the mapping.
	_Atomic uint64_t at;
};

// A word per page follows on the next page.
#define WORDS(log) ((_Atomic uint64_t *)((char *)(log) + PAGE))

static struct log *log_of(size_t len)
{
	// A test that dies leaves nothing behind.
	alarm(60);
	return map_window(CONTROL, PAGE + len, PROT_READ | PROT_WRITE, MAP_SHARED);
}

static void violation(struct log *log, uint64_t page, uint64_t got, uint64_t wanted)
{
	log->wrong_page = page;
	log->wrong_got = got;
	log->wrong_wanted = wanted;
	log->wrong++;
}
