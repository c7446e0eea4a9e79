//! G7 where the monitor never starts, or ends: its mappings refuse, for good, and nobody waits.

use revocable_mmio::{MapOptions, Monitor, OnDisabled, Region, Strategy, Support};
use std::sync::{Arc, Barrier};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_monitor_thread_that_cannot_start_fails_closed() {
    if !Support::current().userfaultfd() {
        println!("SKIP: no userfaultfd");
        return;
    }
    for _ in 0..20 {
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        monitor.on_thread_start(|| panic!("no filter, no work (this panic is the test's)"));
        let region = Region::builder(1 << 16).strategy(Strategy::Zap).monitor(monitor).build().expect("a region");
        match region.map(MapOptions::new()) {
            Ok(mapping) => drop(mapping.read::<u64>(0).expect_err("nobody answers the fault")),
            Err(dead) => println!("{dead}"),
        }
    }
}

#[test]
fn enabling_gives_nothing_back_that_nobody_would_serve() {
    if !Support::current().userfaultfd() {
        println!("SKIP: no userfaultfd");
        return;
    }
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
            let read = told.recv_timeout(Duration::from_secs(5)).expect("an access waits for a monitor that is dead");
            match policy {
                OnDisabled::AllOnes => assert!(!matches!(read, Ok(0)), "nobody would serve it"),
                _ => drop(read.expect_err("nobody would serve it")),
            }
        }
        assert!(since.elapsed() < Duration::from_secs(5));
    }
}
