/* The whole user space of qemu-peer's guest. Two processes store to BAR 0 and load from it without pause, while the guest
 * clears and sets the memory bit, and while the server takes the BAR away by itself.
 *
 * The BAR's last word says how often it was away. If that word is whole, and the same before and after an access, the BAR
 * was there all the time: the store must then be found by every later load that is made in the same way. */

#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { LEN = 64 << 10, TIMES = LEN / 8 - 1, WORKERS = 2, WORDS = TIMES / WORKERS, COMMAND = 4, MEMORY = 2 };

#define DEVICE "/sys/bus/pci/devices/" PLACE "/"

struct seen {
    uint64_t stores, loads, away, ones, zeroes, wrong;
};

static volatile uint64_t *bar;
static struct {
    volatile int stop;
    struct seen by[WORKERS];
} *shared;

static void done(const char *how) {
    printf("result: %s\n", how);
    fflush(stdout);
    sync();
    reboot(RB_POWER_OFF);
    for (;;) pause();
}

static int whole(uint64_t times) { return (uint32_t)(times >> 32) == (uint32_t)~times; }

/* Was the BAR there, from the time that `before` was read until now? */
static int was_there(uint64_t before, struct seen *seen) {
    __sync_synchronize();
    if (whole(before) && bar[TIMES] == before) return 1;
    seen->away++;
    seen->ones += before == UINT64_MAX;
    seen->zeroes += before == 0;
    return 0;
}

static void check(volatile uint64_t *word, uint64_t expected, struct seen *seen) {
    uint64_t before = bar[TIMES], found = *word;
    if (!was_there(before, seen)) return;
    seen->loads++;
    if (found != expected && seen->wrong++ < 5)
        printf("word %ld: stored %#lx, found %#lx\n", (long)(word - bar), expected, found);
}

static void work(int which) {
    static uint64_t expected[WORDS]; /* 0: unknown */
    volatile uint64_t *own = bar + which * WORDS;
    struct seen *seen = &shared->by[which];
    for (uint64_t value = 1; !shared->stop; value++) {
        int at = rand() % WORDS, other = rand() % WORDS;
        uint64_t before = bar[TIMES], stored = (uint64_t)(which + 1) << 56 | value;
        own[at] = stored;
        expected[at] = 0;
        if (was_there(before, seen)) {
            expected[at] = stored;
            seen->stores++;
        }
        if (expected[other]) check(own + other, expected[other], seen);
    }
    for (int at = 0; at < WORDS; at++) {
        uint64_t loads = seen->loads;
        while (expected[at] && seen->loads == loads) check(own + at, expected[at], seen);
    }
}

static void sleep_ms(long ms) {
    struct timespec time = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&time, NULL);
}

static uint64_t times(void) {
    for (;;) {
        uint64_t times = bar[TIMES];
        if (whole(times)) return (uint32_t)times;
    }
}

int main(void) {
    mkdir("/sys", 0755);
    if (mount("sysfs", "/sys", "sysfs", 0, "")) done("failed: no sysfs");
    int config = open(DEVICE "config", O_RDWR | O_SYNC), resource = open(DEVICE "resource0", O_RDWR | O_SYNC);
    uint16_t command;
    if (config < 0 || resource < 0 || pread(config, &command, 2, COMMAND) != 2) done("failed: no device");
    uint16_t on = command | MEMORY, off = command & ~MEMORY;
    pwrite(config, &on, 2, COMMAND);
    bar = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, resource, 0);
    shared = mmap(NULL, sizeof *shared, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (bar == MAP_FAILED || shared == MAP_FAILED) done("failed: no mapping");

    uint64_t first = times();
    for (int which = 0; which < WORKERS; which++)
        if (fork() == 0) {
            srand(which + 1);
            work(which);
            _exit(0);
        }
    for (int round = 0; round < ROUNDS; round++) {
        sleep_ms(5);
        pwrite(config, &off, 2, COMMAND);
        sleep_ms(2);
        pwrite(config, &on, 2, COMMAND);
    }
    uint64_t by_command = times() - first, last = times();
    while (times() - last < ROUNDS) sleep_ms(10);
    shared->stop = 1;
    int status, died = 0;
    while (wait(&status) > 0) died |= status;

    struct seen all = {0};
    for (int which = 0; which < WORKERS; which++) {
        struct seen *seen = &shared->by[which];
        printf("worker %d: %lu stores and %lu loads while the BAR was there, %lu wrong; away %lu times: %lu ones, %lu zeroes\n",
               which, seen->stores, seen->loads, seen->wrong, seen->away, seen->ones, seen->zeroes);
        all.wrong += seen->wrong;
        if (seen->stores < 1000 || seen->loads < 1000 || seen->away < 10) died = 1;
    }
    printf("away %lu times during %d rounds by the memory bit, then %lu times by the server\n", by_command, ROUNDS,
           times() - last);
    done(all.wrong ? "failed: a store was lost, or a load was stale" : died ? "failed: a worker did too little" : "good");
}
