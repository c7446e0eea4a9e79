//! A monitor's throughput with 1, 2 and 4 faulting threads, beside a plain loop of poll, read and UFFDIO_CONTINUE over
//! the same kind of memory.
//!
//! `cargo bench --bench monitor`. A ratio says how many faults the monitor serves in the time in which the plain loop
//! serves one.

#[expect(dead_code, reason = "each bench needs a part of it")]
mod support;

use revocable_mmio::{FaultAround, MapOptions, Mapping, Monitor, Region, Strategy, Support};
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};
use support::raw::{Bytes, Map, PAGE, memfd};
use support::{Contest, Ratios, Samples, pick, skip, uffd};

/// Pages that each thread faults in, per round.
const PAGES: usize = 512;
const MOST_THREADS: usize = 4;
const LEN: usize = MOST_THREADS * PAGES * PAGE;

fn main() {
    if !Support::current().userfaultfd() {
        return skip("all of it", "no userfaultfd");
    }
    let file = memfd(LEN, 0).expect("memory");
    let plain = uffd::served(&file, LEN);
    (0..LEN / PAGE).for_each(|page| plain.bytes().store(page * PAGE, content(page)));
    let (one, two) = (Ours::new(1), Ours::new(2));
    let mut samples = Samples::default();
    let mut ratios = Ratios::default();
    for threads in [1, 2, 4] {
        let name = |rival: &str| format!("{threads} faulting: {rival}");
        let sample = |n: u64, report: &mut dyn FnMut(u64, Duration), round: &dyn Fn() -> Duration| {
            (0..n).for_each(|_| report((threads * PAGES) as u64, round()));
        };
        let mut contest = Contest::new("monitor", Duration::ZERO);
        contest.each(&name("plain loop"), 1, |n, report| sample(n, report, &|| round_of_plain(plain, threads)));
        contest.each(&name("monitor, 1 thread"), 1, |n, report| sample(n, report, &|| one.round(threads)));
        contest.each(&name("monitor, 2 threads"), 1, |n, report| sample(n, report, &|| two.round(threads)));
        contest.run(pick(61, 6), &mut samples);
        for (number, rival) in [(1, "monitor, 1 thread"), (2, "monitor, 2 threads")] {
            let ratio = format!("monitor_{number}_vs_plain_{threads}_faulting");
            ratios.of(&samples, &ratio, &name("plain loop"), &name(rival), None);
        }
        let p50 = |rival| samples.p50(&name(rival)).expect("sampled just now");
        assert!(p50("monitor, 1 thread") < 10.0 * p50("plain loop"), "{threads} faulting: the monitor is slow");
    }
    samples.table("a fault, with so many threads that fault");
    ratios.print();
}

/// The first byte of a page.
fn content(page: usize) -> u8 {
    (page % 251).to_le_bytes()[0]
}

/// Each of `threads` threads loads from its own pages, one after the other. Returns the time until all are done.
fn fault_in(bytes: Bytes, threads: usize) -> Duration {
    let start = Barrier::new(threads + 1);
    let mut since = Instant::now();
    thread::scope(|scope| {
        for thread in 0..threads {
            let start = &start;
            scope.spawn(move || {
                start.wait();
                for page in thread * PAGES..(thread + 1) * PAGES {
                    assert_eq!(bytes.load(page * PAGE), content(page), "the page's own content");
                }
            });
        }
        start.wait();
        since = Instant::now();
    });
    since.elapsed()
}

fn round_of_plain(map: &Map, threads: usize) -> Duration {
    map.advise(nix::libc::MADV_DONTNEED).expect("own memory");
    fault_in(map.bytes(), threads)
}

/// A region whose mapping is zapped between the rounds.
struct Ours {
    region: Region,
    mapping: Mapping,
}

impl Ours {
    fn new(monitor_threads: usize) -> Self {
        let monitor = Monitor::with_threads(monitor_threads).expect("a userfaultfd");
        let builder = Region::builder(LEN).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1));
        let region = builder.monitor(monitor).build().expect("a region");
        for page in 0..LEN / PAGE {
            region.owner().write(page * PAGE, content(page)).expect("the owner's view");
        }
        let mapping = region.map(MapOptions::new()).expect("it maps");
        Self { region, mapping }
    }

    fn round(&self, threads: usize) -> Duration {
        self.region.disable().expect("nothing is in the way");
        self.region.enable().expect("it comes back");
        let before = self.region.stats().faults_mapped;
        let took = fault_in(Bytes::of(&self.mapping), threads);
        // The last fault is counted after its thread has gone on.
        let due = Instant::now() + Duration::from_secs(1);
        let faults = || self.region.stats().faults_mapped - before;
        while faults() < (threads * PAGES) as u64 && Instant::now() < due {
            thread::yield_now();
        }
        assert_eq!(faults(), (threads * PAGES) as u64, "one fault per page");
        took
    }
}
