//! While the write side of the memory lock is held, accesses wait; only a disabled region refuses.

use crate::support;
use crate::support::addr;
use crate::support::matrix::{every_case, every_case_at_once, every_case_with};
use crate::support::{eventually, raw, stress_time};
use revocable_mmio::{AccessError, MapOptions, OnDisabled, Region, RevokeError, Strategy};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const RESET: Duration = Duration::from_millis(60);

#[test]
fn accesses_during_a_reset_wait_for_its_end_and_none_is_refused() {
    support::start();
    every_case_at_once(|case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        mapping.write(0, 1u64).expect("enabled");
        raw::load64(base).expect("enabled");
        let (busy, done) = (AtomicBool::new(false), AtomicU64::new(0));
        thread::scope(|scope| {
            let during = |access: Box<dyn FnOnce() -> String + Send>| {
                let (busy, done) = (&busy, &done);
                scope.spawn(move || {
                    eventually("the reset begins", || busy.load(Ordering::SeqCst));
                    let got = access();
                    done.fetch_add(1, Ordering::SeqCst);
                    got
                })
            };
            let (mapping, region) = (&mapping, &region);
            let mut accesses = vec![
                (during(Box::new(|| format!("{:?}", mapping.read::<u64>(0)))), "Ok(2)"),
                (during(Box::new(|| format!("{:?}", mapping.write(16, 3u64)))), "Ok(())"),
                (during(Box::new(|| format!("{:?}", case.map(region).read::<u64>(0)))), "Ok(2)"),
            ];
            if case.can_wait() {
                accesses.push((during(Box::new(move || format!("{:?}", raw::load64(base)))), "Ok(2)"));
                accesses.push((during(Box::new(move || format!("{:?}", raw::store64(base + 8, 7)))), "Ok(())"));
                if case.kernel_waits() {
                    accesses.push((during(Box::new(move || format!("{:?}", raw::write_from(base, 8)))), "Ok(8)"));
                    let into = base + 4096 - 8;
                    accesses.push((during(Box::new(move || format!("{:?}", raw::read_into(into, &[9; 8])))), "Ok(8)"));
                }
            }
            let reset = region.reset(|owner| {
                assert!(region.is_enabled(), "{case}: a region that is being reset is enabled");
                assert_eq!(mapping.try_read::<u64>(0), Err(AccessError::WouldBlock { offset: 0 }), "{case}");
                busy.store(true, Ordering::SeqCst);
                thread::sleep(RESET);
                assert_eq!(done.load(Ordering::SeqCst), 0, "{case}: an access did not wait");
                owner.write(0, 2u64).expect("the owner writes");
            });
            reset.expect("it resets");
            for (access, wanted) in accesses {
                assert_eq!(access.join().expect("no panic"), wanted, "{case}");
            }
        });
        assert_eq!(region.owner().read::<u64>(16), Ok(3), "{case}: the late store is in");
        if case.can_wait() {
            assert_eq!(region.owner().read::<u64>(8), Ok(7), "{case}: the late raw store is in");
            assert_eq!(region.stats().degraded, 0, "{case}");
        }
    });
}

#[test]
fn no_access_of_an_enabled_region_is_ever_refused_by_resets() {
    support::start();
    let time = stress_time(50);
    every_case(|case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::SeqCst) {
                    assert!(mapping.read::<u64>(0).is_ok(), "{case}: an accessor");
                }
            });
            if case.can_wait() {
                scope.spawn(|| {
                    while !end.load(Ordering::SeqCst) {
                        assert_eq!(raw::load64(base + 8), Ok(0), "{case}: a raw load");
                    }
                });
                if case.kernel_waits() {
                    scope.spawn(|| {
                        while !end.load(Ordering::SeqCst) {
                            assert_eq!(raw::write_from(base, 16), Ok(16), "{case}: a system call");
                        }
                    });
                }
            }
            let since = Instant::now();
            while since.elapsed() < time {
                region.reset(|_| ()).expect("it resets");
            }
            end.store(true, Ordering::SeqCst);
        });
    });
}

#[test]
fn a_disabled_region_refuses_during_a_reset_and_stays_disabled() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        region.disable().expect("it revokes");
        region
            .reset(|owner| {
                assert!(!region.is_enabled(), "{case}");
                assert_eq!(raw::load64(base), Err(raw::Hit::bus(base)), "{case}");
                owner.write(0, 9u64).expect("the owner writes");
            })
            .expect("it resets");
        assert_eq!(raw::load64(base), Err(raw::Hit::bus(base)), "{case}");
        region.enable().expect("it comes back");
        assert_eq!(raw::load64(base), Ok(9), "{case}");
    });
}

#[test]
fn a_change_of_state_waits_for_a_reset_and_the_try_verbs_do_not() {
    support::start();
    every_case_with(&[OnDisabled::Sigbus], |case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let over = AtomicBool::new(false);
        support::busy(&region, |end| {
            // These would wait for ever.
            assert!(matches!(region.try_disable(), Err(RevokeError::Busy(_))), "{case}");
            assert!(matches!(region.try_enable(), Err(RevokeError::Busy(_))), "{case}");
            assert!(matches!(region.try_reset(|_| ()), Err(RevokeError::Busy(_))), "{case}");
            let since = Instant::now();
            let given_up = region.disable_timeout(Duration::from_millis(10));
            let took = since.elapsed();
            assert!(matches!(given_up, Err(RevokeError::TimedOut { .. })), "{case}: {given_up:?}");
            assert!(took >= Duration::from_millis(10), "{case}: {took:?}");
            thread::scope(|scope| {
                scope.spawn(|| {
                    thread::sleep(RESET);
                    over.store(true, Ordering::SeqCst);
                    drop(end);
                });
                assert!(region.disable().expect("it revokes"), "{case}");
                assert!(over.load(Ordering::SeqCst), "{case}: disable waited for the reset");
            });
        });
        assert_eq!(raw::load64(base), Err(raw::Hit::bus(base)), "{case}");
    });
}

#[test]
fn a_panic_in_a_reset_passes_on_after_the_memory_is_back() {
    support::start();
    every_case(|case| {
        let region = case.region(1);
        let mapping = case.map(&region);
        mapping.write(0, 4u64).expect("enabled");
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            // Without the message of the panic hook, as this is not a failure of the test.
            region.reset(|_| std::panic::resume_unwind(Box::new("expected")))
        }));
        assert_eq!(panicked.expect_err("it passes on").downcast_ref::<&str>(), Some(&"expected"), "{case}");
        assert!(region.is_enabled(), "{case}");
        assert_eq!(mapping.read::<u64>(0), Ok(4), "{case}");
        assert_eq!(raw::load64(addr(&mapping)), Ok(4), "{case}");
        assert!(region.disable().expect("it revokes"), "{case}");
    });
}

#[test]
fn waiting_for_a_reset_burns_no_processor_time() {
    support::start();
    // Keeps the thread of the shared monitor running.
    let served = Region::builder(crate::support::page_size()).strategy(Strategy::Zap).build();
    let _served = served.as_ref().ok().map(|region| region.map(MapOptions::new()).expect("it maps"));
    every_case_at_once(|case| {
        if !case.can_wait() {
            return;
        }
        let region = case.region(1);
        let mapping = case.map(&region);
        let base = addr(&mapping);
        let (busy, tid) = (AtomicBool::new(false), AtomicI32::new(0));
        thread::scope(|scope| {
            scope.spawn(|| {
                tid.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
                eventually("the reset begins", || busy.load(Ordering::SeqCst));
                assert_eq!(raw::load64(base), Ok(0), "{case}");
            });
            let reset = region.reset(|_| {
                eventually("the load's thread runs", || tid.load(Ordering::SeqCst) != 0);
                busy.store(true, Ordering::SeqCst);
                support::a_moment();
                let before = support::count::thread_time(tid.load(Ordering::SeqCst));
                thread::sleep(Duration::from_millis(100));
                // The clock of a sleeping thread may read a little less on another processor than it did before.
                support::count::thread_time(tid.load(Ordering::SeqCst)).saturating_sub(before)
            });
            let burned = reset.expect("it resets");
            assert!(burned < Duration::from_millis(40), "{case}: {burned:?} in 100 ms");
        });
    });
}
