//! G1 and G2 under load from all sides: see `support/stress.rs`. `REVOCABLE_STRESS_SECONDS` sets the duration for each
//! combination.

use crate::support;
use crate::support::matrix::{STRATEGIES, every_case};
use crate::support::stress::hammer;
use crate::support::{raw, stress_time};
use revocable_mmio::{MapOptions, Region};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Instant;

#[test]
fn nobody_gets_through_while_disabled_and_nothing_is_lost() {
    support::start();
    let time = stress_time(120);
    every_case(|case| {
        let seen = hammer(case, time);
        assert!(seen.violations.is_empty(), "{:?}", seen.violations);
        assert!(seen.rounds > 1 && seen.succeeded > 0, "{case}: {seen:?}");
        println!("{case}: {} rounds, {} accesses, {} refused", seen.rounds, seen.succeeded, seen.refused);
    });
}

#[test]
fn mapping_and_unmapping_while_others_revoke_and_access() {
    support::start();
    let time = stress_time(150);
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(64 << 10).strategy(strategy).build() else { continue };
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !end.load(Ordering::Relaxed) {
                        let mapping = region.map(MapOptions::new()).expect("it maps");
                        let at = mapping.as_ptr().expose_provenance();
                        let value = mapping.read::<u64>(0);
                        assert!(!region.is_enabled() || value.is_err() || value == Ok(0), "{strategy}");
                        // Mapping and unmapping must not hit a neighbour's range.
                        let _ = raw::load64(at);
                        drop(mapping);
                    }
                });
            }
            scope.spawn(|| {
                let steady = region.map(MapOptions::new()).expect("it maps");
                while !end.load(Ordering::Relaxed) {
                    let got = steady.read::<u64>(8);
                    assert!(got == Ok(0) || got.is_err(), "{strategy}: {got:?}");
                }
            });
            let since = Instant::now();
            while since.elapsed() < time {
                region.disable().expect("it revokes");
                region.enable().expect("it comes back");
                region.reset(|_| ()).expect("it resets");
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(region.stats().degraded, 0, "{strategy}");
    }
}
