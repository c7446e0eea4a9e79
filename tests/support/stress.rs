//! A check of G1 and G2 that a broken revocation fails: while the region is disabled, the owner puts stamps into it. A
//! load that reads a stamp is a violation, and so is an access that succeeds wholly inside of a disabled window.

use super::matrix::Case;
use super::raw;
use revocable_mmio::{Mapping, OnDisabled, Region};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// The stamp. No enabled region ever contains it.
const STAMP: u64 = 0xdead_0000_dead_0000;

/// How long the threads have for their first access.
const PATIENCE: Duration = Duration::from_secs(20);

/// The results of a run.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    pub(crate) rounds: u64,
    pub(crate) succeeded: u64,
    pub(crate) refused: u64,
    pub(crate) violations: Vec<String>,
}

/// Odd while the region is disabled for sure: set after `disable()` has returned, cleared before `enable()` is called.
struct Window(AtomicU64);

impl Window {
    /// The number of the disabled window that is open now, if any.
    fn now(&self) -> Option<u64> {
        Some(self.0.load(Ordering::SeqCst)).filter(|n| n % 2 == 1)
    }
}

/// Accesses a region of this case by accessors, copies, and raw loads and stores, while it is disabled and
/// enabled, for `time`. Under Block an access that begins in a window does not end in it, because it waits.
pub(crate) fn hammer(case: &Case, time: Duration) -> Seen {
    let region = case.region(2);
    let mappings = [case.map(&region), case.map(&region)];
    let window = Window(AtomicU64::new(0));
    let end = AtomicBool::new(false);
    let (succeeded, refused) = (AtomicU64::new(0), AtomicU64::new(0));
    let violations = parking_lot::Mutex::new(Vec::new());
    let mut rounds = 0;
    thread::scope(|scope| {
        for worker in 0..4usize {
            let (mapping, region) = (&mappings[worker % 2], &region);
            let (window, end, violations) = (&window, &end, &violations);
            let (succeeded, refused) = (&succeeded, &refused);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let before = window.now();
                    let got = access(worker, region, mapping);
                    let after = window.now();
                    let inside = before.is_some() && before == after;
                    match got {
                        Some(value) => {
                            succeeded.fetch_add(1, Ordering::Relaxed);
                            let ones = case.policy == OnDisabled::AllOnes && value == u64::MAX;
                            if value == STAMP {
                                violations.lock().push(format!("{case}: worker {worker} read a stamp"));
                            } else if inside && !ones {
                                violations.lock().push(format!("{case}: worker {worker} got {value:#x} in a window"));
                            }
                        }
                        None => {
                            refused.fetch_add(1, Ordering::Relaxed);
                        }
                    }
                }
            });
        }
        let since = Instant::now();
        // On a busy machine the threads may not have made an access yet.
        let begins = || succeeded.load(Ordering::Relaxed) > 0 || since.elapsed() > PATIENCE;
        while (since.elapsed() < time || rounds < 2 || !begins()) && violations.lock().is_empty() {
            region.disable().expect("it revokes");
            window.0.fetch_add(1, Ordering::SeqCst);
            let mut kept = [0; 2];
            for (i, at) in [0, case.page()].into_iter().enumerate() {
                kept[i] = region.owner().read::<u64>(at).expect("the owner reads");
                region.owner().write(at, STAMP).expect("the owner writes");
            }
            thread::sleep(Duration::from_micros(200));
            for (at, value) in [0, case.page()].into_iter().zip(kept) {
                let now = region.owner().read::<u64>(at).expect("the owner reads");
                if now != STAMP {
                    violations.lock().push(format!("{case}: a store of {now:#x} got into the disabled region"));
                }
                region.owner().write(at, value).expect("the owner writes");
            }
            window.0.fetch_add(1, Ordering::SeqCst);
            region.enable().expect("it comes back");
            thread::sleep(Duration::from_micros(100));
            rounds += 1;
        }
        end.store(true, Ordering::Relaxed);
    });
    Seen {
        rounds,
        succeeded: succeeded.into_inner(),
        refused: refused.into_inner(),
        violations: violations.into_inner(),
    }
}

/// Makes one access. Returns the value read or stored, or `None` if it was refused.
fn access(worker: usize, region: &Region, mapping: &Mapping) -> Option<u64> {
    let base = mapping.as_ptr().expose_provenance();
    let second = region.page_size();
    match worker {
        0 => mapping.read::<u64>(0).ok(),
        1 => raw::load64(base + second).ok(),
        // Under AllOnes a store succeeds and is lost, so a load is made instead.
        2 if mapping.on_disabled() == OnDisabled::AllOnes => raw::load64(base).ok(),
        2 => raw::store64(base + second, 7).ok().map(|()| 7),
        _ => {
            let mut into = [0u8; 8];
            mapping.read_slice(second, &mut into).ok().map(|()| u64::from_le_bytes(into))
        }
    }
}
