//! Monitors, shared or of one's own, with threads or driven by hand. They stop and leave nothing behind, and they
//! withstand signals, stale messages and a descriptor that other code closes.

use crate::support;
use crate::support::addr;
use crate::support::count::{Held, userfaultfds};
use crate::support::{a_moment, child, eventually, page_size, raw, stress_time};
use nix::sys::signal::Signal;
use revocable_mmio::{MapOptions, Monitor, OnDisabled, Region, Strategy, Support};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

fn zap_possible() -> bool {
    Region::builder(crate::support::page_size()).strategy(Strategy::Zap).build().is_ok()
}

#[test]
fn a_monitor_that_is_let_go_leaves_no_thread_and_no_descriptor() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let ended = child::alone(|| {
        let use_once = |monitor: Option<Monitor>| {
            let builder = Region::builder(1 << 20).strategy(Strategy::Zap);
            let builder = match monitor {
                Some(monitor) => builder.monitor(monitor),
                None => builder,
            };
            let region = builder.build().expect("it builds");
            let mapping = region.map(MapOptions::new()).expect("it maps");
            assert_eq!(raw::load64(addr(&mapping)), Ok(0));
            region.disable().expect("it revokes");
        };
        use_once(None);
        eventually("the shared monitor's thread is gone", || Held::now().threads == 0);
        let before = Held::now();
        for threads in [1, 4] {
            use_once(Some(Monitor::with_threads(threads).expect("a userfaultfd")));
            eventually("its threads are gone", || Held::now() == before);
        }
        for _ in 0..5 {
            use_once(None);
        }
        eventually("the shared one too", || Held::now() == before);
    });
    ended.well();
}

#[test]
fn many_threads_of_one_monitor_answer_many_faulting_threads() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    const LEN: usize = 4 << 20;
    let monitor = Monitor::with_threads(4).expect("a userfaultfd");
    let builder = Region::builder(LEN).strategy(Strategy::Zap).monitor(monitor.clone());
    let region = builder.fault_around(revocable_mmio::FaultAround::Pages(1)).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    for at in (0..LEN).step_by(page_size()) {
        region.owner().write(at, at as u64).expect("the owner writes");
    }
    for _ in 0..3 {
        region.disable().expect("it revokes");
        region.enable().expect("it comes back");
        thread::scope(|scope| {
            for first in 0..8usize {
                let base = addr(&mapping);
                scope.spawn(move || {
                    // Each page is loaded by two threads, in opposite directions.
                    let mut pages: Vec<usize> = (first / 2 * page_size()..LEN).step_by(4 * page_size()).collect();
                    if first % 2 == 1 {
                        pages.reverse();
                    }
                    for at in pages {
                        assert_eq!(raw::load64(base + at), Ok(at as u64));
                    }
                });
            }
        });
    }
    assert!(monitor.stats().faults >= 3 * (LEN / page_size()) as u64, "{:?}", monitor.stats());
    assert_eq!(monitor.stats().panics, 0);
}

#[test]
fn a_storm_of_signals_loses_no_fault_and_stops_no_monitor() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let ended = child::alone(|| {
        raw::ignore_nothing(Signal::SIGPROF);
        raw::ignore_nothing(Signal::SIGCHLD);
        let region = Region::builder(1 << 20).strategy(Strategy::Zap).build().expect("it builds");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        let end = AtomicBool::new(false);
        let me = nix::unistd::getpid();
        thread::scope(|scope| {
            scope.spawn(|| {
                while !end.load(Ordering::Relaxed) {
                    let _ = nix::sys::signal::kill(me, Signal::SIGPROF);
                    let _ = nix::sys::signal::kill(me, Signal::SIGCHLD);
                    thread::sleep(Duration::from_micros(100));
                }
            });
            let since = Instant::now();
            let mut rounds = 0_u32;
            while since.elapsed() < stress_time(200) || rounds <= 3 {
                region.disable().expect("it revokes");
                region.enable().expect("it comes back");
                for at in (0..1 << 20).step_by(64 << 10) {
                    assert_eq!(raw::load64(addr(&mapping) + at), Ok(0));
                    let call = raw::write_from(addr(&mapping) + at, 8);
                    assert!(call == Ok(8) || !Support::current().sees_kernel_faults(), "{call:?}");
                }
                rounds += 1;
            }
            end.store(true, Ordering::Relaxed);
        });
    });
    ended.well();
}

#[test]
fn one_regions_long_reset_does_not_hold_up_anothers_faults() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    let monitor = Monitor::with_threads(1).expect("a userfaultfd");
    let region = || {
        let builder = Region::builder(64 << 10).strategy(Strategy::Zap).monitor(monitor.clone());
        let region = builder.build().expect("it builds");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        (region, mapping)
    };
    let ((busy, in_it), (_other, elsewhere)) = (region(), region());
    let began = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            eventually("the reset begins", || began.load(Ordering::SeqCst));
            raw::load64(addr(&in_it))
        });
        busy.reset(|_| {
            began.store(true, Ordering::SeqCst);
            a_moment();
            assert!(!waiting.is_finished());
            let since = Instant::now();
            assert_eq!(raw::load64(addr(&elsewhere)), Ok(0));
            assert!(since.elapsed() < support::patience(Duration::from_millis(200)), "{:?}", since.elapsed());
            assert!(!waiting.is_finished());
        })
        .expect("it resets");
        assert_eq!(waiting.join().expect("no panic"), Ok(0));
    });
}

#[test]
fn a_userfaultfd_closed_behind_its_back_fails_closed() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    for disabled in [true, false] {
        let vars = [("REVOCABLE_TEST_DISABLED", if disabled { "1" } else { "0" })];
        let ended = child::alone_with(&vars, || {
            let disabled = std::env::var("REVOCABLE_TEST_DISABLED").is_ok_and(|value| value == "1");
            for policy in [OnDisabled::Sigbus, OnDisabled::Block, OnDisabled::AllOnes] {
                let monitor = Monitor::with_threads(1).expect("a userfaultfd");
                let builder = Region::builder(64 << 10).strategy(Strategy::Zap).monitor(monitor);
                let before = userfaultfds();
                let region = builder.build().expect("it builds");
                let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("it maps");
                mapping.write(0, 7u64).expect("enabled");
                region.disable().expect("it revokes");
                if !disabled {
                    region.enable().expect("it comes back");
                }
                let at = addr(&mapping);
                let blocked = (disabled && policy == OnDisabled::Block).then(|| thread::spawn(move || raw::load64(at)));
                a_moment();
                for fd in before.iter().chain(&userfaultfds()).collect::<std::collections::BTreeSet<_>>() {
                    raw::close_behind_its_back(*fd);
                }
                // The monitor finds out with the next fault, or has already.
                let probe = thread::spawn(move || raw::load64(at));
                if let Some(blocked) = blocked {
                    let _ = region.enable();
                    eventually("the blocked thread wakes", || blocked.is_finished());
                    drop(blocked.join());
                }
                eventually(&format!("{policy:?} disabled: {disabled}: the probe ends"), || probe.is_finished());
                let got = probe.join().expect("no panic");
                let reached = got == Ok(7);
                assert!(!(disabled && reached && !region.is_enabled()), "{policy:?}: disabled, and reached");
                // In any state, revoking works and nothing gets through.
                if region.is_enabled() {
                    let _ = region.disable();
                }
                if !region.is_enabled() && policy != OnDisabled::Block {
                    assert_ne!(raw::load64(at), Ok(7), "{policy:?}");
                }
                // Other files may have the descriptors' numbers by now, and drop would close those.
                std::mem::forget(mapping);
                std::mem::forget(region);
            }
        });
        ended.well();
    }
}

#[test]
fn an_enable_that_finds_no_userfaultfd_shows_nothing_even_for_a_moment() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    child::alone(|| {
        // Objects that the whole process shares exist before the count.
        let _other = Region::builder(crate::support::page_size()).build().expect("it builds");
        let before = userfaultfds();
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        let region = Region::builder(64 << 10).strategy(Strategy::Zap).monitor(monitor).build().expect("it builds");
        let mapping = region.map(MapOptions::new()).expect("it maps");
        mapping.write(0, 7u64).expect("enabled");
        region.disable().expect("it revokes");
        userfaultfds().iter().filter(|fd| !before.contains(fd)).for_each(|fd| raw::close_behind_its_back(*fd));
        let at = addr(&mapping);
        let done = AtomicBool::new(false);
        thread::scope(|scope| {
            let reached =
                scope.spawn(|| (0..).take_while(|_| !done.load(Ordering::SeqCst)).any(|_| raw::load64(at) == Ok(7)));
            let enabled = (0..300).any(|_| region.enable().is_ok());
            done.store(true, Ordering::SeqCst);
            assert!(!enabled && !region.is_enabled());
            assert!(!reached.join().expect("no panic"), "disabled, and reached");
        });
        std::mem::forget((mapping, region));
    })
    .well();
}

#[test]
fn a_manual_monitor_is_driven_by_the_callers_loop() {
    support::start();
    require!(zap_possible(), "Zap is not possible");
    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
    use std::os::fd::AsFd;
    let monitor = Monitor::manual().expect("a userfaultfd");
    let region = Region::builder(64 << 10).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("it builds");
    let mapping = region.map(MapOptions::new()).expect("it maps");
    assert_eq!(monitor.handle_ready(16).expect("nothing yet"), 0);
    thread::scope(|scope| {
        let load = scope.spawn(|| raw::load64(addr(&mapping)));
        while !load.is_finished() {
            let mut fds = [PollFd::new(monitor.as_fd(), PollFlags::POLLIN)];
            poll(&mut fds, PollTimeout::from(10u16)).expect("it polls");
            monitor.handle_ready(16).expect("it handles");
        }
        assert_eq!(load.join().expect("no panic"), Ok(0));
    });
}
