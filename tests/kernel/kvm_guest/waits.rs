//! Accesses that wait, are cancelled, or are interrupted by a signal.
#![expect(unsafe_code, reason = "an implementor of SetMemslot passes on an unsafe contract; signals kick a vCPU")]

use super::guest::{BAR, Mode, PATTERN, code, kvm_or_skip};
use super::{RETENTIONS, SLOT, STRATEGIES, bar, guest, load, mapping};
use crate::support::{self, storm};
use kvm_ioctls::VcpuExit;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use revocable_mmio::CancelToken;
use revocable_mmio::kvm::{ExitHandler, Handled, WhenDisabled};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

#[test]
fn an_access_that_waits_goes_on_with_enable_and_the_guest_sees_nothing_of_it() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Wait);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        bar.disable().expect("nothing is in the way");
        thread::scope(|scope| {
            let vcpu = scope.spawn(|| load(&mut guest, &mut exits));
            thread::sleep(Duration::from_millis(30));
            assert!(!vcpu.is_finished(), "{strategy} {retention:?}: it waits");
            bar.enable().expect("it comes back");
            assert_eq!(vcpu.join().expect("no panic"), Ok(PATTERN), "{strategy} {retention:?}");
        });
    }
}

#[test]
fn a_waiting_access_is_called_off_and_taken_up_again() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, _) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Wait);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        let kick = CancelToken::new();
        let mut exits = ExitHandler::new(slots, WhenDisabled::Wait, kick.clone());
        bar.disable().expect("nothing is in the way");
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                kick.cancel()
            });
            let exit = guest.vcpu.run();
            assert!(matches!(exits.handle(exit), Ok(Handled::Cancelled)), "{strategy} {retention:?}");
        });
        // The VMM does the work that it kicked the vCPU for, and continues the access.
        exits.set_cancel(CancelToken::new());
        bar.enable().expect("it comes back");
        assert!(matches!(exits.again(&mut guest.vcpu), Ok(Handled::Reenter)));
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{strategy} {retention:?}: the guest saw no all-ones");
    }
}

extern "C" fn nothing(_: i32) {}

#[test]
fn a_vcpu_that_runs_in_a_disabled_bar_is_kicked_by_a_signal() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let action = SigAction::new(SigHandler::Handler(nothing), SaFlags::empty(), SigSet::empty());
    // SAFETY: the handler does nothing.
    unsafe { sigaction(Signal::SIGUSR1, &action) }.expect("SIGUSR1 can be handled");
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        bar.disable().expect("nothing is in the way");
        let vcpu = nix::unistd::gettid();
        let kicked = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                // Repeated, because a signal between two entries of the guest interrupts nothing.
                while !kicked.load(Ordering::SeqCst) {
                    storm::send(vcpu, Signal::SIGUSR1);
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let since = Instant::now();
            loop {
                match exits.handle(guest.vcpu.run()).expect("every exit is handled") {
                    Handled::Other(Err(e)) if e.errno() == nix::libc::EINTR => break,
                    Handled::Reenter | Handled::Other(Ok(VcpuExit::IoOut(..))) => {}
                    other => panic!("unexpected: {other:?}"),
                }
                assert!(
                    since.elapsed() < support::patience(Duration::from_secs(10)),
                    "{strategy} {retention:?}: not to be kicked"
                );
            }
            kicked.store(true, Ordering::SeqCst);
        });
    }
}

#[test]
fn an_access_during_a_reset_waits_and_is_never_refused() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        thread::scope(|scope| {
            let (tell, told) = std::sync::mpsc::channel();
            let reset = scope.spawn(|| {
                bar.reset(move |device| {
                    tell.send(()).expect("it listens");
                    thread::sleep(Duration::from_millis(50));
                    device.write::<u32>(0x80, 3)
                })
            });
            told.recv().expect("the reset begins");
            assert_eq!(load(&mut guest, &mut exits), Ok(3), "{strategy} {retention:?}");
            assert!(matches!(reset.join().expect("no panic"), Ok(Ok(()))));
        });
    }
}
