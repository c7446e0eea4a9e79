//! G4: revocation waits for guards and pins only, says so, and each wait has its honest trio. G5: no deadlock,
//! whichever locks, guards or pins the faulting thread holds.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{STRATEGIES, every_case, every_case_at_once, every_case_with};
use crate::support::waiter::Waiter;
use crate::support::{a_moment, child, eventually, raw, stress_time};
use revocable_mmio::fault::FaultFlags;
use revocable_mmio::{AccessError, Feature, MapOptions, Monitor, OnDisabled, Region, RevokeError, Strategy, Support};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn disable_waits_for_a_guard_says_whose_and_gives_up_when_told() {
    support::start();
    every_case(|case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        let (told, tell) = mpsc::channel();
        let let_go = AtomicBool::new(false);
        thread::scope(|scope| {
            let _let_go = support::AtTheEnd(&let_go);
            scope.spawn(|| {
                let access = mapping.try_access().expect("enabled");
                told.send(nix::unistd::gettid().as_raw()).expect("the test listens");
                while !let_go.load(Ordering::SeqCst) {
                    // A guard's holder may access, and fault, all the while.
                    assert_eq!(access.read::<u64>(0), Ok(0), "{case}");
                    assert_eq!(raw::load64(addr(&mapping)), Ok(0), "{case}");
                    thread::yield_now();
                }
            });
            let tid = tell.recv().expect("a guard is held");
            let since = Instant::now();
            match region.try_disable() {
                Err(RevokeError::Busy(holders)) => {
                    assert_eq!(
                        holders.guards.iter().map(|g| (g.tid, g.count)).collect::<Vec<_>>(),
                        [(tid, 1)],
                        "{case}"
                    );
                }
                other => panic!("{case}: {other:?}"),
            }
            assert!(
                since.elapsed() < support::patience(Duration::from_millis(100)),
                "{case}: try_ never waits: {:?}",
                since.elapsed()
            );
            let since = Instant::now();
            match region.disable_timeout(Duration::from_millis(20)) {
                Err(RevokeError::TimedOut { waited, holders }) => {
                    // The deadline counts from the call, and the wait begins a little later.
                    let took = since.elapsed();
                    assert!(took >= Duration::from_millis(20) && waited <= took, "{case}: {waited:?} of {took:?}");
                    assert_eq!(holders.guards.len(), 1, "{case}");
                }
                other => panic!("{case}: {other:?}"),
            }
            assert!(region.is_enabled(), "{case}: given up, nothing changed");
            assert_eq!(mapping.read::<u64>(0), Ok(0), "{case}");
            let waiting = scope.spawn(|| region.disable());
            a_moment();
            assert!(!waiting.is_finished(), "{case}: disable waits");
            let_go.store(true, Ordering::SeqCst);
            assert!(waiting.join().expect("no panic").expect("it revokes"), "{case}");
        });
        assert!(mapping.try_access().is_err(), "{case}");
    });
}

#[test]
fn disable_waits_for_a_pin_and_its_holder_is_told() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(1);
        let _mapping = case.map(&region);
        let (told, tell) = mpsc::channel();
        let pin = region.pin(0..8, FaultFlags::WAIT).expect("enabled").on_revoke(move || told.send(()).unwrap_or(()));
        match region.try_disable() {
            Err(RevokeError::Busy(holders)) => assert_eq!(holders.pins, 1, "{case}"),
            other => panic!("{case}: {other:?}"),
        }
        thread::scope(|scope| {
            let waiting = scope.spawn(|| region.disable());
            tell.recv_timeout(Duration::from_secs(5)).expect("the holder is told");
            assert!(!waiting.is_finished(), "{case}");
            drop(pin);
            assert!(waiting.join().expect("no panic").expect("it revokes"), "{case}");
        });
        assert!(region.pin(0..8, FaultFlags::WAIT).is_err(), "{case}");
    });
}

#[test]
fn waiting_for_oneself_is_an_error_and_no_deadlock() {
    support::start();
    every_case(|case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        let access = mapping.try_access().expect("enabled");
        for verb in [Region::disable, Region::try_disable] {
            assert!(
                matches!(verb(&region), Err(RevokeError::WouldDeadlock { guards: 1 } | RevokeError::Busy(_))),
                "{case}"
            );
        }
        drop(access);
        let inside = region.reset(|_| (region.disable().map(drop), region.enable().map(drop), region.reset(|_| ())));
        let (disable, enable, reset) = inside.expect("it resets");
        for verb in [disable, enable, reset] {
            assert!(matches!(verb, Err(RevokeError::Reentrant)), "{case}: {verb:?}");
        }
        assert!(region.disable().expect("it revokes"), "{case}");
    });
}

/// One system call whose source and target are two mappings of one region, while the region is revoked and given back.
#[test]
fn copying_one_mapping_into_another_of_the_same_region_never_deadlocks() {
    support::start();
    let time = stress_time(60);
    every_case(|case| {
        let region = case.region(2);
        let (from, to) = (case.map(&region), case.map(&region));
        region.owner().fill(0, 7, 4096).expect("the owner writes");
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            let (a, b) = (addr(&from), addr(&to) + case.page());
            let (end, from, to, region) = (&end, &from, &to, &region);
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let _ = raw::copy_in_kernel(a, b, 64);
                    let _ = raw::write_from(a, 64);
                }
            });
            scope.spawn(move || {
                while !end.load(Ordering::Relaxed) {
                    let mut bounce = [0; 64];
                    if from.read_slice(0, &mut bounce).is_ok() {
                        let _ = to.write_slice(case.page(), &bounce);
                    }
                    let _ = from.with_access(|access| (access.read::<u64>(0), to.read::<u64>(8)));
                }
            });
            let since = Instant::now();
            while since.elapsed() < time {
                region.disable_timeout(Duration::from_secs(10)).unwrap_or_else(|e| panic!("{case}: {e}"));
                region.enable().expect("it comes back");
            }
            end.store(true, Ordering::Relaxed);
        });
    });
}

/// The memory lock is never held while the caller's buffer is touched, not even where accesses are made under it
/// (`--cfg revocable_portable`). The buffer here faults for as long as another region is disabled.
#[test]
#[expect(unsafe_code, reason = "a buffer that faults")]
fn a_copy_whose_buffer_waits_holds_no_revocation_up() {
    support::start();
    let can_wait =
        Support::current().userfaultfd() && Support::current().has(Feature::UFFD_USER_MODE | Feature::UFFD_EVENT_REMAP);
    require!(can_wait, "waiting is not possible", could: support::at_its_best());
    every_case_at_once(|case| {
        let slow = Region::builder(1 << 16).build().expect("a region");
        let buffer = slow.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("waiting is possible");
        let region = case.region(1);
        let mapping = case.map(&region);
        for out in [true, false] {
            slow.disable().expect("nothing is in the way");
            let (begins, begun) = mpsc::channel();
            thread::scope(|scope| {
                let copy = scope.spawn(|| {
                    begins.send(()).expect("the test listens");
                    // SAFETY: the mapping outlives the test, and nothing else uses its memory.
                    let buffer = unsafe { std::slice::from_raw_parts_mut(buffer.as_ptr(), 64) };
                    if out { mapping.read_slice(0, buffer) } else { mapping.write_slice(0, buffer) }
                });
                begun.recv().expect("the thread runs");
                a_moment();
                assert!(!copy.is_finished(), "{case}: the buffer is there");
                let revoked = region.disable_timeout(Duration::from_secs(1));
                region.enable().expect("it comes back");
                // First, so that the thread ends even if a check below fails.
                slow.enable().expect("it comes back");
                assert_eq!(copy.join().expect("no panic"), Ok(()), "{case}");
                assert!(revoked.is_ok(), "{case}: {revoked:?}");
            });
        }
    });
}

#[test]
fn dropping_a_mapping_or_its_region_wakes_who_waits_in_it() {
    support::start();
    let ended = child::alone(|| {
        every_case_with(&[OnDisabled::Block], |case| {
            for drops_region in [false, true] {
                let region = case.region(2);
                let mapping = case.map(&region);
                let base = addr(&mapping);
                region.disable().expect("it revokes");
                let waiter = Waiter::default();
                let begins = waiter.clone();
                let load = thread::spawn(move || {
                    begins.begins();
                    raw::load64(base)
                });
                waiter.until_it_faults();
                assert!(!load.is_finished(), "{case}: it waits");
                let mut kept = (None, None);
                if drops_region {
                    drop(region);
                    kept.0 = Some(mapping);
                } else {
                    drop(mapping);
                    kept.1 = Some(region);
                }
                eventually(&format!("{case} drops the region: {drops_region}: the load ends"), || load.is_finished());
                let hit = load.join().expect("no panic").expect_err("nothing is there any more");
                assert_eq!(hit.is_segv(), !drops_region, "{case}: {hit:?}");
                assert_eq!(raw::write_from(base, 8), Err(nix::errno::Errno::EFAULT), "{case}");
            }
        });
    });
    ended.well();
}

#[test]
fn a_region_whose_guard_lives_is_dropped_at_once_and_revoked_when_the_guard_ends() {
    support::start();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(crate::support::page_size()).strategy(strategy).build() else { continue };
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let access = mapping.try_access().expect("enabled");
        drop(region);
        a_moment();
        assert_eq!(raw::load64(addr(&mapping)), Ok(0), "{strategy}: the guard's promise is kept");
        drop(access);
        eventually("it is gone", || mapping.read::<u64>(0) == Err(AccessError::Gone { offset: 0 }));
        assert!(raw::load64(addr(&mapping)).is_err(), "{strategy}");
    }
}

/// The thread of the event loop that drives a manual monitor may be the one that revokes.
#[test]
fn a_manual_monitors_own_thread_may_revoke_while_a_guard_holder_faults() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let Ok(region) = Monitor::manual()
        .map(|monitor| Region::builder(1 << 20).strategy(Strategy::Zap).monitor(monitor).build())
        .expect("a monitor")
    else {
        return support::skip("Zap is not possible", support::at_its_best());
    };
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let held = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            let access = mapping.try_access().expect("enabled");
            held.store(true, Ordering::SeqCst);
            a_moment();
            // Only the revoking thread can resolve this fault.
            assert_eq!(access.read::<u64>(0), Ok(0));
        });
        eventually("the guard is held", || held.load(Ordering::SeqCst));
        assert!(region.disable_timeout(Duration::from_secs(10)).expect("it revokes"));
    });
}

/// The same with an access that faults, and no guard.
#[test]
fn a_manual_monitors_own_thread_may_revoke_while_an_access_faults() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    let monitor = Monitor::manual().expect("a monitor");
    let Ok(region) = Region::builder(1 << 20).strategy(Strategy::Zap).monitor(monitor).build() else {
        return support::skip("Zap is not possible", support::at_its_best());
    };
    let mapping = region.map(MapOptions::new()).expect("it maps");
    thread::scope(|scope| {
        let read = scope.spawn(|| mapping.read::<u64>(0));
        a_moment();
        // Where accesses don't recover, they don't fault either.
        assert_eq!(read.is_finished(), cfg!(revocable_portable), "no thread has resolved the fault");
        assert!(region.disable_timeout(Duration::from_secs(10)).expect("it revokes"));
        let met = read.join().expect("no panic");
        assert!(met == Ok(0) || met == Err(AccessError::Disabled { offset: 0 }), "{met:?}");
    });
}
