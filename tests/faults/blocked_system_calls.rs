//! Policy Block is for user mode. Loads and stores wait for `enable()`; system calls are refused (EFAULT), whatever the
//! process's privileges. So no system call is left in the kernel, where it would spin with a signal pending.

use crate::support;
use crate::support::count::thread_time;
use crate::support::matrix::{every_case_at_once_with, every_case_with};
use crate::support::watchdog::Watchdog;
use crate::support::{a_moment, eventually, on_slow_machine, raw, storm, stress_time};
use nix::errno::Errno;
use nix::sys::signal::Signal;
use nix::unistd::Pid;
use revocable_mmio::{OnDisabled, Support};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn a_system_call_is_refused_at_once_and_a_signal_leaves_loads_waiting() {
    support::start();
    require!(Support::current().userfaultfd(), "nothing waits without a userfaultfd");
    raw::ignore_nothing(Signal::SIGUSR1);
    every_case_at_once_with(&[OnDisabled::Block], |case| {
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = mapping.as_ptr().expose_provenance();
        mapping.write::<u64>(0, 7).expect("enabled");
        assert!(region.disable().expect("nothing is in the way"));
        let tid = Arc::new(AtomicI32::new(0));
        let told = Arc::clone(&tid);
        let load = thread::spawn(move || {
            told.store(nix::unistd::gettid().as_raw(), Ordering::SeqCst);
            raw::load64(base)
        });
        eventually("the load's thread runs", || tid.load(Ordering::SeqCst) != 0);
        a_moment();
        let (page, mut word) = (case.page(), 0_u64);
        let into = (&raw mut word).expose_provenance();
        for at in [base, base + page, base + page - 4] {
            assert_eq!(raw::write_pipe_from(at, 8), Err(Errno::EFAULT), "{case}");
            assert_eq!(raw::write_from(at, 8), Err(Errno::EFAULT), "{case}");
            assert_eq!(raw::read_into(at, &[1; 8]), Err(Errno::EFAULT), "{case}");
            // process_vm_readv reports another errno for it.
            assert!(raw::copy_in_kernel(at, into, 8).is_err(), "{case}");
        }
        assert!(!load.is_finished(), "{case}: the load waits");

        storm::send(Pid::from_raw(tid.load(Ordering::SeqCst)), Signal::SIGUSR1);
        let before = thread_time(tid.load(Ordering::SeqCst));
        thread::sleep(Duration::from_millis(200));
        let burned = thread_time(tid.load(Ordering::SeqCst)) - before;
        let limit = Duration::from_millis(if on_slow_machine() { 100 } else { 40 });
        assert!(burned < limit, "{case}: {burned:?} of CPU in 0.2 s of waiting");
        assert!(!load.is_finished(), "{case}: the load goes on waiting");

        assert!(region.enable().expect("it comes back"));
        assert_eq!(load.join().expect("no panic"), Ok(7), "{case}");
        if case.kernel_serves() {
            assert_eq!(raw::write_pipe_from(base, 8), Ok(8), "{case}: system calls work again");
        }
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}

#[test]
fn a_region_that_is_disabled_and_enabled_all_the_time_refuses_system_calls_and_hangs_none() {
    support::start();
    require!(Support::current().userfaultfd(), "nothing waits without a userfaultfd");
    every_case_with(&[OnDisabled::Block], |case| {
        let watchdog = Watchdog::new(&format!("quick changes, {case}"), Duration::from_secs(20));
        let region = case.region(2);
        let mapping = case.map(&region);
        let base = mapping.as_ptr().expose_provenance();
        mapping.write::<u64>(0, 7).expect("enabled");
        let end = AtomicBool::new(false);
        thread::scope(|scope| {
            for worker in 0..3 {
                let end = &end;
                scope.spawn(move || {
                    let file = raw::scratch();
                    let mut refused = 0;
                    while !end.load(Ordering::Relaxed) {
                        match worker {
                            0 => assert_eq!(raw::load64(base), Ok(7), "{case}"),
                            _ => match raw::pwrite_from(&file, base, 8) {
                                Ok(8) => {}
                                Err(Errno::EFAULT) => refused += 1,
                                other => panic!("{case}: {other:?}"),
                            },
                        }
                    }
                    refused
                });
            }
            let since = Instant::now();
            while since.elapsed() < stress_time(150) {
                region.disable().expect("it revokes");
                thread::sleep(Duration::from_micros(50));
                region.enable().expect("it comes back");
                watchdog.beat();
            }
            end.store(true, Ordering::Relaxed);
        });
        assert_eq!(region.stats().degraded, 0, "{case}");
    });
}
