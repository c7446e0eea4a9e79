//! A monitor under pressure: faults that no thread reads, and pages that other code drops as fast as they are mapped.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{POLICIES, STRATEGIES};
use crate::support::watchdog::Watchdog;
use crate::support::{a_moment, page_size, raw, stress_time};
use nix::libc;
use revocable_mmio::{FaultAround, MapOptions, Monitor, OnDisabled, Region, Strategy};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

fn zap_possible() -> bool {
    Region::builder(page_size()).strategy(Strategy::Zap).build().is_ok()
}

/// A region whose pages contain their number, with a monitor that only this test drives.
fn undriven(pages: usize) -> (Monitor, Region) {
    let monitor = Monitor::manual().expect("a userfaultfd");
    let builder = Region::builder(pages * page_size()).strategy(Strategy::Zap).fault_around(FaultAround::Pages(1));
    let region = builder.monitor(monitor.clone()).build().expect("it builds");
    for page in 0..pages {
        region.owner().write(page * page_size(), 0x100 + page as u64).expect("the owner writes");
    }
    (monitor, region)
}

#[test]
fn faults_that_nobody_fetches_for_long_are_answered_in_portions_and_none_is_lost() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    const THREADS: usize = 48;
    const EACH: usize = 16;
    let _watchdog = Watchdog::new("a queue of faults", Duration::from_secs(30));
    let (monitor, region) = undriven(THREADS * EACH);
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let (base, mut most) = (addr(&mapping), 0);
    thread::scope(|scope| {
        let load = |thread: usize| {
            move || {
                for page in thread * EACH..(thread + 1) * EACH {
                    assert_eq!(raw::load64(base + page * page_size()), Ok(0x100 + page as u64));
                }
            }
        };
        let threads: Vec<_> = (0..THREADS).map(|thread| scope.spawn(load(thread))).collect();
        thread::sleep(Duration::from_millis(300));
        assert!(threads.iter().all(|thread| !thread.is_finished()));
        assert_eq!(monitor.stats().faults, 0, "no fault has been read");
        while !threads.iter().all(thread::ScopedJoinHandle::is_finished) {
            most = most.max(monitor.handle_ready(5).expect("it handles faults"));
        }
    });
    assert!(most <= 5, "{most} faults at once");
    assert!(monitor.stats().faults >= (THREADS * EACH) as u64, "{:?}", monitor.stats());
    assert_eq!(monitor.handle_ready(usize::MAX).expect("nothing is left"), 0);
}

#[test]
fn faults_that_nobody_ever_fetches_are_ended_by_a_revocation() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let _watchdog = Watchdog::new("faults that no thread reads", Duration::from_secs(30));
    // `disable()` resolves some faults itself, because a faulting thread might hold a guard: 128 at most.
    const THREADS: usize = 200;
    let (monitor, region) = undriven(THREADS);
    for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
        let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
        let base = addr(&mapping);
        let threads: Vec<_> =
            (0..THREADS).map(|page| thread::spawn(move || raw::load64(base + page * page_size()))).collect();
        a_moment();
        assert!(region.disable().expect("threads that wait for the monitor do not block a revocation"));
        let mut refused = 0;
        for (page, thread) in threads.into_iter().enumerate() {
            let met = thread.join().expect("no panic");
            let early = met == Ok(0x100 + page as u64);
            refused += usize::from(!early);
            match policy {
                OnDisabled::AllOnes => assert!(early || met == Ok(u64::MAX), "{met:?}"),
                _ => assert!(early || met == Err(raw::Hit::bus(base + page * page_size())), "{met:?}"),
            }
        }
        assert!(refused > 0);
        // The queued faults ended with their threads.
        assert_eq!(monitor.handle_ready(usize::MAX).expect("it handles faults"), 0);
        assert!(region.enable().expect("it comes back"));
    }
    // The same for threads that wait in a mapping that is dropped.
    let mapping = region.map(MapOptions::new()).expect("it maps");
    let base = addr(&mapping);
    let threads: Vec<_> = (0..8).map(|page| thread::spawn(move || raw::load64(base + page * page_size()))).collect();
    a_moment();
    drop(mapping);
    for thread in threads {
        // Another test's mapping may be at this address by now.
        let _ = thread.join().expect("no panic");
    }
}

#[test]
fn pages_that_somebody_else_drops_all_the_time_come_back_while_enabled_and_never_while_disabled() {
    support::start();
    const PAGES: usize = 32;
    const FORBIDDEN: u64 = 0xdead;
    for strategy in STRATEGIES {
        for policy in POLICIES {
            let Ok(region) = Region::builder(PAGES * page_size()).strategy(strategy).build() else { continue };
            let Ok(mapping) = region.map(MapOptions::new().on_disabled(policy)) else { continue };
            let watchdog = Watchdog::new(&format!("dropped pages, {strategy} {policy:?}"), Duration::from_secs(20));
            let (base, end) = (addr(&mapping), AtomicBool::new(false));
            let (loads, drops) = (AtomicU64::new(0), AtomicU64::new(0));
            let wrong = parking_lot::Mutex::new(Vec::new());
            thread::scope(|scope| {
                // Foreign advice, page by page and for the whole range. It must open nothing, whatever stands in the
                // range.
                for advice in [libc::MADV_DONTNEED, libc::MADV_REMOVE, libc::MADV_PAGEOUT] {
                    let (end, drops) = (&end, &drops);
                    scope.spawn(move || {
                        for page in (0..PAGES).cycle() {
                            if end.load(Ordering::Relaxed) {
                                return;
                            }
                            let range = if page == 0 {
                                (base, PAGES * page_size())
                            } else {
                                (base + page * page_size(), page_size())
                            };
                            let _ = raw::advise(range.0, range.1, advice);
                            drops.fetch_add(1, Ordering::Relaxed);
                            thread::yield_now();
                        }
                    });
                }
                for thread in 0..4 {
                    let (end, loads, wrong) = (&end, &loads, &wrong);
                    scope.spawn(move || {
                        for page in (0..PAGES).cycle().skip(thread * 7) {
                            if end.load(Ordering::Relaxed) {
                                return;
                            }
                            // A removed page reads as zero, and the owner's last store as one.
                            let met = raw::load64(base + page * page_size());
                            let right = match met {
                                Ok(value) => value <= 1 || policy == OnDisabled::AllOnes && value == u64::MAX,
                                Err(hit) => policy == OnDisabled::Sigbus && hit == raw::Hit::bus(hit.addr),
                            };
                            if !right {
                                wrong.lock().push(met);
                            }
                            loads.fetch_add(1, Ordering::Relaxed);
                        }
                    });
                }
                let since = Instant::now();
                let owner = region.owner();
                let write =
                    |value: u64| (0..PAGES).for_each(|page| owner.write(page * page_size(), value).expect("it writes"));
                // At least a few drops, on a busy machine too.
                let enough = || since.elapsed() >= stress_time(80) && drops.load(Ordering::Relaxed) > 10;
                while !enough() && wrong.lock().is_empty() {
                    assert!(region.disable().expect("it revokes"));
                    write(FORBIDDEN);
                    thread::sleep(Duration::from_micros(300));
                    write(1);
                    assert!(region.enable().expect("it comes back"));
                    let before = loads.load(Ordering::Relaxed);
                    // The watchdog ends the test if no load succeeds.
                    while loads.load(Ordering::Relaxed) == before {
                        thread::sleep(Duration::from_micros(100));
                    }
                    watchdog.beat();
                }
                end.store(true, Ordering::Relaxed);
            });
            assert!(wrong.lock().is_empty(), "{strategy} {policy:?}: {:?}", wrong.lock());
            assert_eq!(region.stats().degraded, 0, "{strategy} {policy:?}");
        }
    }
}
