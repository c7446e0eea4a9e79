// Stores increasing numbers to every page without pause, and logs each store that has returned.
//
// storer LEN exact|ones. The log is two arrays of a word per page: the last store that has returned, and the last mark of
// the owner's that was read. `exact`: what is loaded is what was stored, or the access is refused. `ones`: any load may
// get ones.
#include "peer.h"
#include "log.h"

int main(int count, char **args)
{
	(void)count;
	size_t len = strtoul(args[1], 0, 0), pages = len / PAGE;
	int exact = strcmp(args[2], "exact") == 0;
	struct log *log = log_of(len);
	_Atomic uint64_t *stored = WORDS(log), *marked = stored + pages;
	char *at = map_window(WINDOW, len, PROT_READ | PROT_WRITE, MAP_SHARED);
	log->at = (uint64_t)at;
	catch_faults();
	while (!log->stop) {
		for (size_t page = 0; page < pages; page++) {
			char *word = at + page * PAGE;
			uint64_t last = stored[page], found, mark;
			if (!loads(word, &found) || !loads(word + 8, &mark)) {
				if (fault_code != BUS_ADRERR)
					violation(log, page, (uint64_t)fault_code, BUS_ADRERR);
				log->refused++;
				continue;
			}
			if (exact && found != last)
				violation(log, page, found, last);
			if (exact && mark < marked[page])
				violation(log, page, mark, marked[page]);
			if (mark != ~0ul)
				marked[page] = mark;
			if (stores(word, last + 1)) {
				stored[page] = last + 1;
				log->made++;
			} else {
				log->refused++;
			}
		}
		log->passes++;
	}
}
