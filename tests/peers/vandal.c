// Does to its descriptor whatever a peer with the right to write can do, at random and without pause.
//
// vandal LEN SEED WAYS: the letters of the ways to use.
#include "peer.h"
#include "log.h"

static uint64_t state;

static uint64_t next(uint64_t below)
{
	// xorshift64
	state ^= state << 13;
	state ^= state >> 7;
	state ^= state << 17;
	return below ? state % below : 0;
}

int main(int count, char **args)
{
	(void)count;
	size_t len = strtoul(args[1], 0, 0);
	state = strtoul(args[2], 0, 0) | 1;
	const char *ways = args[3];
	struct log *log = log_of(len);
	char *at = map_window(WINDOW, len, PROT_READ | PROT_WRITE, MAP_SHARED);
	char *to = map_window(-1, len + HUGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS);
	at = mremap(at, len, len, MREMAP_MAYMOVE | MREMAP_FIXED, to + -(unsigned long)to % HUGE);
	catch_faults();
	log->at = (uint64_t)at;
	uint64_t junk[512];
	memset(junk, 0xaa, sizeof junk);
	for (; !log->stop; log->passes++) {
		off_t from = (off_t)(next(len / PAGE + 1) * PAGE), odd = (off_t)next(len);
		off_t size = (off_t)((1 + next(len / PAGE)) * PAGE);
		long done = 0;
		switch (ways[next(strlen(ways))]) {
		case 't': // shorter, to nothing or to anything
			done = ftruncate(WINDOW, next(2) ? 0 : odd);
			break;
		case 'h': // to a half
			done = ftruncate(WINDOW, (off_t)len / 2);
			break;
		case 'g': // longer than the region
			done = ftruncate(WINDOW, (off_t)len + size);
			break;
		case 'r': // as long as the region
			done = ftruncate(WINDOW, (off_t)len);
			break;
		case 'p':
			done = fallocate(WINDOW, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, from, size);
			break;
		case 'a': // pages, within the file or beyond its end
			done = fallocate(WINDOW, next(2) ? FALLOC_FL_KEEP_SIZE : 0, from, size);
			break;
		case 's':
			if (fcntl(WINDOW, F_ADD_SEALS, 1 << next(6)) == 0)
				violation(log, 0, 's', 0);
			break;
		case 'w':
			done = pwrite(WINDOW, junk, sizeof junk, odd);
			break;
		case 'f':
			done = fcntl(WINDOW, F_SETFL, next(2) ? O_APPEND : O_NONBLOCK);
			break;
		case 'm':
			stores(at + odd / 8 * 8, 0xaaaaaaaaaaaaaaaaul);
			break;
		case 'l':
			done = mlock(at, len);
			munlock(at, len);
			break;
		case 'c':
			done = madvise(at, len, MADV_COLLAPSE);
			break;
		case 'i': { // to the end of the file, whatever the flags say
			lseek(WINDOW, next(2) ? 0 : odd, SEEK_SET);
			done = write(WINDOW, junk, 1 + next(sizeof junk));
			break;
		}
		}
		done < 0 ? log->refused++ : log->made++;
	}
}
