//! G7 where the monitor never starts, or ends: its mappings refuse for good, and no access waits.

use crate::support;
use crate::support::matrix::every_case_with;
use crate::support::raw;
use revocable_mmio::{MapOptions, Monitor, OnDisabled, Region, Strategy, Support};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

#[test]
#[cfg_attr(revocable_portable, ignore = "no accessor needs a monitor")]
fn a_monitor_thread_that_cannot_start_fails_closed() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    for _ in 0..20 {
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        monitor.on_thread_start(|| panic!("no filter, no work (this panic is the test's)"));
        let region = Region::builder(1 << 16).strategy(Strategy::Zap).monitor(monitor).build().expect("a region");
        match region.map(MapOptions::new()) {
            Ok(mapping) => drop(mapping.read::<u64>(0).expect_err("no thread resolves the fault")),
            Err(dead) => println!("{dead}"),
        }
    }
}

#[test]
#[cfg_attr(revocable_portable, ignore = "no accessor needs a monitor")]
fn enabling_gives_nothing_back_that_nobody_would_serve() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    // Under the other strategies the kernel serves what is enabled.
    for policy in [OnDisabled::Sigbus, OnDisabled::AllOnes] {
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        let mapped = Arc::new(Barrier::new(2));
        let wait = Arc::clone(&mapped);
        monitor.on_thread_start(move || {
            wait.wait();
            panic!("the end (this panic is the test's)")
        });
        let region = Region::builder(1 << 16).strategy(Strategy::Zap).monitor(monitor).build().expect("a region");
        let mapping = region.map(MapOptions::new().on_disabled(policy)).expect("the monitor lives so far");
        mapped.wait();
        thread::sleep(Duration::from_millis(50));
        let (tell, told) = std::sync::mpsc::channel();
        // Not scoped: a thread that hangs in a fault must not hang the test.
        thread::spawn(move || {
            for _ in 0..3 {
                let _ = region.disable();
                let _ = region.enable();
                let _ = tell.send(mapping.read::<u64>(0));
            }
        });
        let since = Instant::now();
        for _ in 0..3 {
            let read = told
                .recv_timeout(support::patience(Duration::from_secs(5)))
                .expect("an access waits for a monitor that is dead");
            match policy {
                OnDisabled::AllOnes => assert!(!matches!(read, Ok(0)), "no monitor would serve it"),
                _ => drop(read.expect_err("no monitor would serve it")),
            }
        }
        assert!(since.elapsed() < crate::support::patience(Duration::from_secs(5)));
    }
}

/// Under Detach and Replace the kernel serves what is enabled, so a monitor's end changes nothing for it.
#[test]
fn mappings_that_need_no_monitor_outlive_it() {
    support::start();
    require!(Support::current().userfaultfd(), "no userfaultfd");
    every_case_with(&[OnDisabled::Sigbus, OnDisabled::AllOnes], |case| {
        if case.strategy == Strategy::Zap {
            return;
        }
        let monitor = Monitor::manual().expect("a userfaultfd");
        let region = case.builder(2).monitor(monitor.clone()).build().expect("it builds");
        let [other, mapping] = [case.map(&region), case.map(&region)];
        mapping.write(0, 7u64).expect("enabled");
        // Another descriptor takes the place of the monitor's userfaultfd, so the monitor ends when it next reads it.
        raw::replace_behind_its_back(&monitor);
        monitor.handle_ready(1).expect_err("no userfaultfd any more");
        for at in [0, case.page()] {
            for _ in 0..3 {
                assert_eq!(other.read::<u64>(at), Ok(if at == 0 { 7 } else { 0 }), "{case}");
                assert_eq!(mapping.read_slice(at, &mut [0; 16]), Ok(()), "{case}");
                assert_eq!(mapping.write(at + 8, 8u64), Ok(()), "{case}");
            }
        }
        region.disable().expect("it revokes");
        assert_ne!(mapping.read::<u64>(0), Ok(7), "{case}");
        region.enable().expect("it comes back");
        assert_eq!(mapping.read::<u64>(0), Ok(7), "{case}");
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}
