//! Policy Block: whoever waits for `enable()` inside a system call burns no CPU, not even with a signal pending.
#![expect(unsafe_code, reason = "raw pointers and signal handlers are what is tested")]

use nix::errno::Errno;
use nix::sys::pthread::pthread_kill;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::time::{ClockId, clock_gettime};
use revocable_mmio::{MapOptions, OnDisabled, Region, Strategy, Support};
use std::os::unix::thread::JoinHandleExt;
use std::thread;
use std::time::Duration;

extern "C" fn nothing(_: i32) {}

fn process_cpu_time() -> Duration {
    Duration::from(clock_gettime(ClockId::CLOCK_PROCESS_CPUTIME_ID).expect("the process has a clock"))
}

/// A write(2) whose buffer is the mapping.
fn write_from(address: usize) -> Result<usize, Errno> {
    let (_reader, writer) = nix::unistd::pipe()?;
    let from = std::ptr::with_exposed_provenance::<u8>(address);
    // SAFETY: the mapping outlives the thread; the kernel alone reads the bytes.
    let buffer = unsafe { std::slice::from_raw_parts(from, 8) };
    nix::unistd::write(&writer, buffer)
}

fn load_from(address: usize) -> u64 {
    // SAFETY: the mapping outlives the thread.
    unsafe { std::ptr::with_exposed_provenance::<u64>(address).read_volatile() }
}

#[test]
fn a_signal_ends_a_blocked_system_call_and_leaves_loads_waiting() {
    if !Support::current().sees_kernel_faults() {
        println!("SKIP: a userfaultfd for user-mode faults only lets no system call wait");
        return;
    }
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("SIGUSR1 can be handled");
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        let region = Region::builder(1 << 20).strategy(strategy).build().expect("the strategy is there");
        let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
        mapping.write::<u64>(0, 7).expect("enabled");
        assert!(region.disable().expect("nobody is in the way"));
        let address = mapping.as_ptr().expose_provenance();
        let call = thread::spawn(move || write_from(address));
        let load = thread::spawn(move || load_from(address));
        thread::sleep(Duration::from_millis(50));
        assert!(!call.is_finished() && !load.is_finished(), "{strategy}: both wait");

        let before = process_cpu_time();
        for waiter in [load.as_pthread_t(), call.as_pthread_t()] {
            pthread_kill(waiter, Signal::SIGUSR1).expect("the thread lives");
        }
        thread::sleep(Duration::from_millis(500));
        let burned = process_cpu_time() - before;
        assert!(burned < Duration::from_millis(100), "{strategy}: {burned:?} of CPU in half a second of waiting");
        assert!(call.is_finished(), "{strategy}: the signal ended the call");
        assert_eq!(call.join().expect("no panic"), Err(Errno::EFAULT));
        assert_eq!(write_from(address), Err(Errno::EFAULT), "{strategy}: later calls are refused until enable");
        assert!(!load.is_finished(), "{strategy}: the load goes on waiting");

        assert!(region.enable().expect("it comes back"));
        assert_eq!(load.join().expect("no panic"), 7);
        assert_eq!(write_from(address), Ok(8), "{strategy}: system calls work again");
        assert_eq!(region.stats().degraded, 0);
    }
}

#[test]
fn a_blocked_system_call_without_a_signal_waits_for_enable() {
    if !Support::current().sees_kernel_faults() {
        println!("SKIP: a userfaultfd for user-mode faults only lets no system call wait");
        return;
    }
    for strategy in [Strategy::Zap, Strategy::Detach, Strategy::Replace] {
        let region = Region::builder(1 << 20).strategy(strategy).disabled().build().expect("the strategy is there");
        let mapping = region.map(MapOptions::new().on_disabled(OnDisabled::Block)).expect("it maps");
        let address = mapping.as_ptr().expose_provenance();
        let call = thread::spawn(move || write_from(address));
        thread::sleep(Duration::from_millis(50));
        assert!(!call.is_finished(), "{strategy}: it waits");
        assert!(region.enable().expect("it comes back"));
        assert_eq!(call.join().expect("no panic"), Ok(8), "{strategy}");
    }
}
