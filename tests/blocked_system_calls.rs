//! Policy Block: whoever waits for `enable()` inside a system call burns no CPU, not even with a signal pending.

#[expect(dead_code, reason = "each test file uses its part")]
mod support;

use nix::errno::Errno;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::Signal;
use parking_lot::Mutex;
use revocable_mmio::{MapOptions, Mapping, Monitor, OnDisabled, Region, Support};
use std::os::unix::thread::JoinHandleExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use support::count::thread_time;
use support::matrix::STRATEGIES;
use support::watchdog::Watchdog;
use support::{a_moment, eventually, on_slow_machine, raw, stress_time};

/// One test at a time: a thread that spins is told by how often it faults, and on an emulated machine that others keep busy it
/// does not fault often.
static ALONE: Mutex<()> = Mutex::new(());

fn blocking(region: &Region) -> (Mapping, usize) {
    let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
    let at = mapping.as_ptr().expose_provenance();
    (mapping, at)
}

#[test]
fn a_signal_ends_a_blocked_system_call_and_leaves_loads_waiting() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "a userfaultfd for user-mode faults lets no system call wait");
    let _alone = ALONE.lock();
    raw::ignore_nothing(Signal::SIGUSR1);
    for strategy in STRATEGIES {
        let monitor = Monitor::with_threads(1).expect("a userfaultfd");
        let tid = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&tid);
        monitor.on_thread_start(move || told.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst));
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).monitor(monitor).build() else { continue };
        let (mapping, address) = blocking(&region);
        mapping.write::<u64>(0, 7).expect("enabled");
        assert!(region.disable().expect("nobody is in the way"));
        let call = thread::spawn(move || raw::write_pipe_from(address, 8));
        let load_tid = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&load_tid);
        let load = thread::spawn(move || {
            told.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            raw::load64(address)
        });
        a_moment();
        assert!(!call.is_finished() && !load.is_finished(), "{strategy}: both wait");

        for waiter in [load.as_pthread_t(), call.as_pthread_t()] {
            pthread_kill(waiter, Signal::SIGUSR1).expect("the thread lives");
        }
        // It spins, for ever if nobody finds out.
        eventually(&format!("{strategy}: the signal ends the call"), || call.is_finished());
        let cost = || [&tid, &load_tid].map(|tid| thread_time(tid.load(Ordering::SeqCst))).iter().sum::<Duration>();
        let before = cost();
        thread::sleep(Duration::from_millis(500));
        let burned = cost() - before;
        // Who spins burns all of it.
        let limit = Duration::from_millis(if on_slow_machine() { 250 } else { 100 });
        assert!(burned < limit, "{strategy}: {burned:?} of CPU in half a second of waiting");
        assert_eq!(call.join().expect("no panic"), Err(Errno::EFAULT));
        assert_eq!(raw::write_pipe_from(address, 8), Err(Errno::EFAULT), "{strategy}: refused until enable");
        assert!(!load.is_finished(), "{strategy}: the load goes on waiting");

        assert!(region.enable().expect("it comes back"));
        assert_eq!(load.join().expect("no panic"), Ok(7));
        assert_eq!(raw::write_pipe_from(address, 8), Ok(8), "{strategy}: system calls work again");
        assert_eq!(region.stats().degraded, 0);
    }
}

#[test]
fn a_blocked_system_call_without_a_signal_waits_for_enable() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "a userfaultfd for user-mode faults lets no system call wait");
    let _alone = ALONE.lock();
    for strategy in STRATEGIES {
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).disabled().build() else { continue };
        let (_mapping, address) = blocking(&region);
        let call = thread::spawn(move || raw::write_pipe_from(address, 8));
        a_moment();
        assert!(!call.is_finished(), "{strategy}: it waits");
        assert!(region.enable().expect("it comes back"));
        assert_eq!(call.join().expect("no panic"), Ok(8), "{strategy}");
    }
}

#[test]
fn a_region_that_is_disabled_and_enabled_all_the_time_refuses_no_system_call() {
    support::start();
    require!(Support::current().sees_kernel_faults(), "a userfaultfd for user-mode faults lets no system call wait");
    let _alone = ALONE.lock();
    for strategy in STRATEGIES {
        let watchdog = Watchdog::new(&format!("quick changes, {strategy}"), Duration::from_secs(20));
        let Ok(region) = Region::builder(1 << 20).strategy(strategy).build() else { continue };
        let (_mapping, address) = blocking(&region);
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for _ in 0..3 {
                scope.spawn(|| {
                    let file = raw::scratch();
                    while !end.load(Ordering::Relaxed) {
                        // Each wait is short, and there are many: that is nobody who spins.
                        assert_eq!(raw::pwrite_from(&file, address, 8), Ok(8), "{strategy}");
                    }
                });
            }
            let since = Instant::now();
            while since.elapsed() < stress_time(300) {
                region.disable().expect("it revokes");
                thread::sleep(Duration::from_micros(50));
                region.enable().expect("it comes back");
                watchdog.beat();
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(region.stats().degraded, 0, "{strategy}");
    }
}
