//! Two regions of one kind with their mappings, and the threads that access them.

use super::changer::{Changer, Changes, seed};
use super::hand::{Hand, Way};
use super::ledger::Ledger;
use super::random::Random;
use super::window::Clock;
use super::worker::{self, Worker};
use crate::support;
use crate::support::matrix::{Case, Memory};
use crate::support::watchdog::Watchdog;
use parking_lot::Mutex;
use revocable_mmio::{FaultAround, MapOptions, Mapping, Region, ResetGroup, Strategy};
use std::io::Write;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// One region, with its case and its ledger.
pub(crate) struct Device {
    pub(crate) case: Case,
    pub(crate) region: Region,
    pub(crate) clock: Clock,
    pub(crate) ledger: Ledger,
    /// Of all of it, twice; of its second half; read-only; for accessors only.
    pub(crate) mappings: [Mapping; 5],
    ways: Vec<Way>,
}

impl Device {
    fn new(case: Case, ways: Vec<Way>, around: FaultAround) -> Self {
        let pages = if case.memory == Memory::Huge { 4 } else { 32 };
        let region = case.builder(pages).fault_around(around).build().unwrap_or_else(|e| panic!("{case}: {e}"));
        let map = |options: MapOptions| region.map(options).unwrap_or_else(|e| panic!("{case} maps: {e}"));
        let mappings = [
            map(case.options()),
            map(case.options()),
            map(case.options().offset(region.len() / 2)),
            map(case.options().read_only()),
            // For `Way::OwnFaults`, which only Zap has.
            map(if case.strategy == Strategy::Zap { case.options().accessors_only() } else { case.options() }),
        ];
        let ledger = Ledger::new(&region, ways.iter().map(|way| way.store_mask()).collect());
        ledger.open(&region, 0).expect("the owner's view");
        Self { case, region, clock: Clock::new(), ledger, mappings, ways }
    }
}

/// The counts of a worker.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    bursts: AtomicU64,
    pub(crate) accesses: worker::Tally,
}

pub(crate) struct Rig {
    pub(crate) devices: [Device; 2],
    pub(crate) group: ResetGroup,
    pub(crate) tallies: Vec<Tally>,
    stop: AtomicBool,
    violations: Mutex<Vec<String>>,
    case: Case,
}

/// Every fourth worker uses the second region.
fn place(worker: usize) -> (usize, usize) {
    if worker % 4 == 3 { (1, worker / 4) } else { (0, worker / 4 * 3 + worker % 4) }
}

/// Makes a burst of accesses, and pauses. Without pauses so many threads would keep each change waiting for a
/// processor, and there would be few changes.
fn burst(worker: &mut Worker<'_, Hand<'_>>) -> Result<(), String> {
    for _ in 0..worker.random.below(48) {
        worker.step()?;
    }
    thread::sleep(Duration::from_micros(worker.random.next() % 8192));
    Ok(())
}

impl Rig {
    pub(crate) fn new(case: Case, threads: usize) -> Self {
        let ways = Way::all(&case);
        let mut of = [Vec::new(), Vec::new()];
        for worker in 0..threads {
            let (device, at) = place(worker);
            of[device].push(ways[at % ways.len()]);
        }
        let [first, second] = of;
        let devices =
            [Device::new(case, first, FaultAround::default()), Device::new(case, second, FaultAround::Pages(1))];
        let group = ResetGroup::new(devices.iter().map(|device| &device.region));
        let tallies = (0..threads).map(|_| Tally::default()).collect();
        Self { devices, group, tallies, stop: AtomicBool::new(false), violations: Mutex::default(), case }
    }

    /// The work of one worker, until the end.
    pub(crate) fn work(&self, number: usize) {
        let (device, at) = place(number);
        let (device, tally) = (&self.devices[device], &self.tallies[number]);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            let mut worker = Worker {
                number: at,
                hand: Hand::new(device.ways[at], device, number),
                clock: &device.clock,
                ledger: &device.ledger,
                tally: &tally.accesses,
                random: Random::new(seed() + 1 + number as u64),
                doubtful: vec![false; device.ledger.pages()],
            };
            while !self.stop.load(Ordering::Relaxed) {
                if let Err(e) = burst(&mut worker) {
                    self.violate(e);
                }
                tally.bursts.fetch_add(1, Ordering::Relaxed);
            }
        }));
        if panicked.is_err() {
            self.violate(format!("worker {number} panicked"));
        }
    }

    /// Changes the regions for `time`, in one thread, and returns the results.
    pub(crate) fn change(&self, time: Duration, watchdog: &Watchdog) -> Changes {
        let mut changer = Changer::new(self);
        let since = Instant::now();
        let mut done = Ok(());
        // At least a few changes, on a slow machine too.
        while done.is_ok() && (since.elapsed() < time || changer.steps() < 4) && !self.stop.load(Ordering::Relaxed) {
            done = changer.step();
            watchdog.beat();
        }
        done = done.and_then(|()| self.roll_call());
        if let Err(e) = done {
            self.violate(e);
        }
        self.stop.store(true, Ordering::Relaxed);
        // After a violation too, so that waiting threads end.
        for device in &self.devices {
            let _ = device.region.enable();
        }
        changer.changes
    }

    /// Checks that every worker makes progress while everything stays enabled.
    pub(crate) fn roll_call(&self) -> Result<(), String> {
        let bursts = |tally: &Tally| tally.bursts.load(Ordering::Relaxed);
        let before: Vec<u64> = self.tallies.iter().map(bursts).collect();
        let since = Instant::now();
        let patience = support::patience(Duration::from_secs(30));
        loop {
            // Two: the first burst may have ended before, and was only counted late.
            let waits = |(_, (tally, before)): &(usize, (&Tally, &u64))| bursts(tally) < *before + 2;
            let late: Vec<usize> = self.tallies.iter().zip(&before).enumerate().filter(waits).map(|(n, _)| n).collect();
            if late.is_empty() || self.stop.load(Ordering::Relaxed) {
                return Ok(());
            }
            if since.elapsed() > patience {
                let ways: Vec<_> = late.iter().map(|n| self.devices[place(*n).0].ways[place(*n).1]).collect();
                let threads = crate::support::watchdog::threads_of("self");
                eprintln!("workers {late:?} {ways:?} do nothing though both regions are enabled:\n{threads}");
                // No other event would end the workers.
                std::process::abort();
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    pub(crate) fn violate(&self, what: String) {
        self.stop.store(true, Ordering::Relaxed);
        let what = format!("{}: {what}", self.case);
        // Printed at once, past the test harness's capture, because a broken run may hang before it reports.
        let _ = writeln!(std::io::stderr(), "VIOLATION {what}");
        self.violations.lock().push(what);
    }

    pub(crate) fn violations(&self) -> Vec<String> {
        self.violations.lock().clone()
    }
}
