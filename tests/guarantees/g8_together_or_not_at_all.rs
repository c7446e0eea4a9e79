//! G8: a reset group is revoked as one; contention is a busy error with everything undone.

use crate::support;
use crate::support::addr;
use crate::support::matrix::every_case_with;
use crate::support::raw::{self, Hit};
use crate::support::stress_time;
use revocable_mmio::{Mapping, OnDisabled, Region, ResetGroup};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

#[test]
fn a_group_with_a_busy_member_is_not_changed_at_all() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let regions: Vec<Region> = (0..3).map(|_| case.region(1)).collect();
        let mappings: Vec<Mapping> = regions.iter().map(|region| case.map(region)).collect();
        let group = ResetGroup::new(&regions);
        for holder in 0..3 {
            let access = mappings[holder].try_access().expect("enabled");
            let (held, over) = (AtomicBool::new(false), AtomicBool::new(false));
            thread::scope(|scope| {
                // In another thread, because the guard's holder itself gets `WouldDeadlock`.
                let tried = scope.spawn(|| {
                    held.store(true, Ordering::SeqCst);
                    let disable = group.try_disable().expect_err("a guard is held");
                    let reset = group.try_reset(|_| over.store(true, Ordering::SeqCst)).expect_err("a guard is held");
                    (disable.is_busy(), reset.is_busy())
                });
                assert_eq!(tried.join().expect("no panic"), (true, true), "{case} holder {holder}");
            });
            assert!(!over.load(Ordering::SeqCst), "{case}: nothing was reset");
            for (region, mapping) in regions.iter().zip(&mappings) {
                assert!(region.is_enabled(), "{case} holder {holder}");
                assert_eq!(raw::load64(addr(mapping)), Ok(0), "{case} holder {holder}");
            }
            drop(access);
        }
        group.try_disable().expect("nothing is in the way");
        for mapping in &mappings {
            assert_eq!(raw::load64(addr(mapping)), Err(Hit::bus(addr(mapping))), "{case}");
        }
        group.try_enable().expect("nothing is in the way");
        for mapping in &mappings {
            assert_eq!(raw::load64(addr(mapping)), Ok(0), "{case}");
        }
    });
}

/// Each reset writes the same value to all members. A thread that reads two of them in between must not see different
/// values.
#[test]
fn a_reset_of_a_group_is_seen_as_one() {
    support::start();
    let time = stress_time(60);
    every_case_with(&[OnDisabled::Sigbus], |case| {
        if !case.can_wait() {
            return;
        }
        let regions = [case.region(1), case.region(1)];
        let mappings = [case.map(&regions[0]), case.map(&regions[1])];
        let group = ResetGroup::new(&regions);
        let (end, generation) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    // Read in this order, the first value is never newer than the second.
                    let before = generation.load(Ordering::SeqCst);
                    let first = mappings[0].read::<u64>(0).expect("a reset refuses nothing");
                    let second = mappings[1].read::<u64>(0).expect("a reset refuses nothing");
                    let after = generation.load(Ordering::SeqCst);
                    assert!(first <= second, "{case}: {first} {second}");
                    assert!(first >= before && second <= after + 1, "{case}: {before} {first} {second} {after}");
                }
            });
            let since = Instant::now();
            let mut resets = 0u64;
            while since.elapsed() < time || resets == 0 {
                let reset = group.try_reset(|views| {
                    for view in views {
                        view.write(0, resets + 1).expect("the owner writes");
                    }
                });
                match reset {
                    Ok(()) => {
                        resets += 1;
                        generation.store(resets, Ordering::SeqCst);
                    }
                    Err(e) => assert!(e.is_busy(), "{case}: {e}"),
                }
            }
            end.store(true, Ordering::Relaxed);
        });
    });
}

#[test]
fn groups_that_overlap_make_progress_from_both_sides() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let regions = [case.region(1), case.region(1), case.region(1)];
        let one = ResetGroup::new([&regions[0], &regions[1]]);
        let two = ResetGroup::new([&regions[2], &regions[1], &regions[1]]);
        assert_eq!(two.len(), 2, "{case}: each member once");
        thread::scope(|scope| {
            for group in [&one, &two] {
                scope.spawn(move || {
                    let mut done = 0;
                    while done < 20 {
                        match group.try_reset(|_| ()) {
                            Ok(()) => done += 1,
                            Err(e) => assert!(e.is_busy(), "{case}: {e}"),
                        }
                    }
                });
            }
        });
        assert!(regions.iter().all(Region::is_enabled), "{case}");
    });
}
