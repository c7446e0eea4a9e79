//! Building, mapping, unmapping and dropping, with failing calls.

use super::{Rig, SECRET, calls_of, failing_once, keep_shared_things, small};
use crate::one_at_a_time;
use crate::support::addr;
use crate::support::count::Held;
use crate::support::matrix::every_case;
use crate::support::waiter::while_loaded;
use crate::support::{self, child, eventually, raw};
use nix::errno::Errno;
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy, inject};
use std::thread;
use std::time::Duration;

#[test]
fn a_map_whose_calls_fail_maps_nothing_and_the_next_works() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        for enabled in [true, false] {
            let make = || {
                let region = if enabled { case.builder(2) } else { case.builder(2).disabled() };
                region.build().expect("it builds")
            };
            let region = make();
            let calls = calls_of(|| drop(case.map(&region)));
            for (call, skip, errno) in failing_once(calls) {
                let what = format!("{case} enabled: {enabled} {call} #{skip} {errno:?}");
                let before = Held::now();
                inject::fail(call, skip, 1, errno);
                let mapped = region.map(case.options());
                inject::clear();
                match &mapped {
                    Ok(mapping) if !enabled => assert_ne!(
                        thread::scope(|_| if case.policy == OnDisabled::Block {
                            Ok(0)
                        } else {
                            raw::load64(addr(mapping))
                        }),
                        Ok(SECRET),
                        "{what}"
                    ),
                    Ok(mapping) => assert!(mapping.read::<u64>(0).is_ok(), "{what}"),
                    Err(e) => assert!(e.to_string().contains(&format!("{errno:?}")), "{what}: {e}"),
                }
                drop(mapped);
                assert_eq!(region.stats().mappings, 0, "{what}");
                let mapping = region.map(case.options()).unwrap_or_else(|e| panic!("{what}: the next: {e}"));
                drop(mapping);
                eventually(&format!("{what}: nothing is left of it: {before:?}"), || {
                    let now = Held::now();
                    now.fds <= before.fds && now.mappings <= before.mappings
                });
            }
        }
    });
}

#[test]
fn a_build_whose_calls_fail_leaves_nothing() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        let calls = calls_of(|| drop(case.region(2)));
        for (call, skip, errno) in failing_once(calls) {
            let what = format!("{case} {call} #{skip} {errno:?}");
            let before = Held::now();
            inject::fail(call, skip, 1, errno);
            let built = case.builder(2).build();
            inject::clear();
            if let Err(e) = &built {
                assert!(e.to_string().contains(&format!("{errno:?}")), "{what}: {e}");
            }
            drop(built);
            eventually(&format!("{what}: nothing is left of it: {before:?}"), || Held::now() == before);
            drop(case.region(2));
        }
    });
}

/// The relative of `dropped_regions::a_pointer_to_a_dropped_mapping_waits_in_nothing_that_moves_away`.
#[test]
fn a_pointer_to_a_dropped_mapping_waits_in_nothing_that_fails_to_move() {
    let _one = one_at_a_time();
    let ended = child::alone(|| {
        support::start();
        let region = Region::builder(1 << 16).strategy(Strategy::Replace).build().expect("a region");
        let held = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("a mapping");
        let dropped = region.map(MapOptions::new()).expect("a mapping");
        while_loaded(addr(&dropped), || {
            drop(dropped);
            for _ in 0..2000 {
                inject::fail("mremap", 0, 1000, Errno::ENOMEM);
                region.disable().expect("it refuses instead");
                inject::clear();
                region.enable().expect("it comes back");
            }
        });
        drop(held);
    });
    ended.well();
}

#[test]
fn an_unmap_that_fails_does_not_leave_the_memory_reachable() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        let before = Held::now();
        let region = case.region(2);
        let mapping = case.map(&region);
        mapping.write(0, SECRET).expect("enabled");
        let at = addr(&mapping);
        inject::fail("munmap", 0, 1000, Errno::ENOMEM);
        drop(mapping);
        inject::clear();
        assert_ne!(raw::load64(at), Ok(SECRET), "{case}: dropped, and still reachable");
        region.disable().expect("it revokes");
        assert_ne!(raw::load64(at), Ok(SECRET), "{case}: disabled, and still reachable");
        drop(case.map(&region)); // mapping again repeats the failed unmap
        drop(region);
        eventually("nothing is left", || Held::now().mappings <= before.mappings);
    });
}

/// The drop of a region has no caller to return an error to, so it goes on trying: in the background, if it can start a
/// thread.
#[test]
fn a_drop_whose_calls_fail_for_a_while_revokes_in_the_end() {
    let _one = one_at_a_time();
    let _kept = keep_shared_things();
    every_case(|case| {
        if !small(case) {
            return;
        }
        // Without threads the drop tries until it succeeds, and only then returns.
        for fails in [inject::ANY_BUT_CLONE, inject::ANY] {
            let Rig { region, views } = Rig::new(case);
            thread::scope(|scope| {
                inject::fail(fails, 0, usize::MAX, Errno::ENOMEM);
                scope.spawn(|| {
                    // Lets the first tries in the background fail, too.
                    thread::sleep(Duration::from_millis(30));
                    inject::clear();
                });
                drop(region);
            });
            for view in &views {
                assert_eq!(
                    view.read::<u64>(0).ok(),
                    (case.policy == OnDisabled::AllOnes).then_some(u64::MAX),
                    "{case}"
                );
                for at in [addr(view), addr(view) + case.page()] {
                    let what = format!("{case}: nothing reaches the memory of a dropped region");
                    eventually(&what, || raw::load64(at) != Ok(SECRET));
                }
            }
        }
    });
}
