//! A guest that checks every load against what the host has done to its BAR.

use super::guest::{BAR, BAR_LEN, Mode, Ram, Word, code, kvm_or_skip, verdict};
use super::{RETENTIONS, SLOT, STRATEGIES, bar, guest, mapping};
use crate::support;
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{Handled, Retention, WhenDisabled};
use revocable_mmio::{Region, Strategy};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// How many cycles are enough, and how often the guest is to see either state. On an emulated machine less: removing a slot waits
/// for KVM's grace periods, and each exit of the guest's takes a hundred times as long.
fn enough() -> (u32, u32) {
    if support::on_slow_machine() { (20, 50) } else { (500, 1000) }
}

/// Disables and enables until the guest has seen enough of both states, and ends it.
fn toggle(bar: &Region, ram: &Ram, vcpu_ended: &AtomicBool) -> u32 {
    let since = Instant::now();
    let mut state = 0;
    let mut tell = || {
        state += 1;
        ram.set(Word::STATE, state);
    };
    let (mut cycles, (enough, seen)) = (0, enough());
    while cycles < enough || ram.get(Word::SEEN_ONES) < seen || ram.get(Word::SEEN_GOOD) < seen {
        if vcpu_ended.load(Ordering::SeqCst) || since.elapsed() > support::patience(Duration::from_secs(60)) {
            break;
        }
        tell();
        assert!(bar.disable().expect("nothing is in the way"));
        tell();
        let before = bar.owner().read::<u32>(0x40).expect("the owner's view");
        thread::sleep(Duration::from_micros(if cycles % 16 == 0 { 200 } else { 1 }));
        let after = bar.owner().read::<u32>(0x40).expect("the owner's view");
        assert_eq!(before, after, "G1: a guest store reached revoked memory");
        tell();
        assert!(bar.enable().expect("it comes back"));
        tell();
        if cycles % 8 == 0 {
            thread::sleep(Duration::from_micros(200));
        }
        cycles += 1;
    }
    ram.set(Word::STOP, 1);
    cycles
}

fn guest_sees_every_revocation(mode: Mode, program: &[u8]) {
    let Some(kvm) = kvm_or_skip() else { return };
    for strategy in STRATEGIES {
        for retention in RETENTIONS {
            let bar = bar(strategy);
            let (mut guest, slots, mut exits) = guest(&kvm, mode, program, WhenDisabled::UnsupportedRequest);
            let slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
            let (enough, seen) = enough();
            let ended = AtomicBool::new(false);
            let (ram, since) = (guest.ram.clone(), Instant::now());
            let (mut mmio, mut efault) = (0u64, 0u64);
            let cycles = thread::scope(|scope| {
                let host = scope.spawn(|| toggle(&bar, &ram, &ended));
                loop {
                    let exit = guest.vcpu.run();
                    match &exit {
                        Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => mmio += 1,
                        Ok(VcpuExit::MemoryFault { .. }) | Err(_) => efault += 1,
                        _ => {}
                    }
                    match exits.handle(exit).expect("every exit is handled") {
                        Handled::Reenter => {}
                        Handled::Other(Ok(VcpuExit::Hlt)) => break,
                        other => panic!("unexpected: {other:?}"),
                    }
                }
                ended.store(true, Ordering::SeqCst);
                host.join().expect("no panic")
            });
            let wrong = ram.get(Word::WRONG);
            assert_eq!(wrong, 0, "{strategy} {retention:?}: {}: {:#x}", verdict(wrong), ram.get(Word::FOUND));
            let (ones, good) = (ram.get(Word::SEEN_ONES), ram.get(Word::SEEN_GOOD));
            println!(
                "{mode:?} {strategy:8} {retention:?}: {cycles} cycles in {:?}, {} rounds, {ones} refused and {good} good \
                 loads, {mmio} MMIO exits, {efault} EFAULT, {:?}",
                since.elapsed(),
                ram.get(Word::ROUNDS),
                slot.stats()
            );
            assert!(cycles >= enough, "{strategy} {retention:?}: {cycles} cycles in time");
            assert!(ones >= seen && good >= seen, "{strategy} {retention:?}: the guest saw too little: {ones}, {good}");
            assert_eq!(slot.stats().degraded, 0);
            assert_eq!(bar.stats().degraded, 0);
            let moves = slot.stats().removals;
            match retention {
                Retention::Keep => assert_eq!(moves, slot.stats().withdrawn, "kept, unless the handler took it"),
                _ => assert_eq!(moves, u64::from(cycles), "out and in with every cycle"),
            }
        }
    }
}

#[test]
fn a_real_mode_guest_never_reaches_revoked_memory_and_loses_no_store() {
    support::start();
    guest_sees_every_revocation(Mode::Real, code::CHECK_16);
}

#[test]
fn a_protected_mode_guest_never_reaches_revoked_memory_and_loses_no_store() {
    support::start();
    guest_sees_every_revocation(Mode::Protected, code::CHECK_32);
}

/// Runs the checking guest over a BAR whose state the host reports wrongly, and returns the guest's verdict.
fn lied_to(lie: impl FnOnce(&Region, &Ram) + Send) -> u32 {
    let kvm = super::guest::kvm().expect("asked before");
    let bar = bar(Strategy::Detach);
    let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::CHECK_16, WhenDisabled::UnsupportedRequest);
    let _slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Remove).expect("the slot is free");
    let ram = guest.ram.clone();
    thread::scope(|scope| {
        scope.spawn(|| {
            while ram.get(Word::SEEN_GOOD) < 100 {
                thread::yield_now();
            }
            lie(&bar, &ram);
            thread::sleep(Duration::from_millis(200));
            ram.set(Word::STOP, 1);
        });
        while !matches!(exits.handle(guest.vcpu.run()), Ok(Handled::Other(Ok(VcpuExit::Hlt)))) {}
    });
    ram.get(Word::WRONG)
}

#[test]
fn the_guest_notices_memory_that_is_not_revoked_and_stores_that_are_lost() {
    support::start();
    if kvm_or_skip().is_none() {
        return;
    }
    let not_revoked = lied_to(|_, ram| ram.set(Word::STATE, 2));
    assert!(matches!(not_revoked, 3 | 5), "{}", verdict(not_revoked));
    let lost = lied_to(|bar, ram| {
        ram.set(Word::STATE, 1);
        bar.disable().expect("nothing is in the way");
        for page in 0..BAR_LEN / 0x1000 {
            bar.owner().write::<u32>(page * 0x1000 + 0x80, 0).expect("the owner's view");
        }
        bar.enable().expect("it comes back");
        ram.set(Word::STATE, 4);
    });
    assert_eq!(lost, 4, "{}", verdict(lost));
    let refused = lied_to(|bar, _| assert!(bar.disable().expect("nothing is in the way")));
    assert!(matches!(refused, 2 | 4), "{}", verdict(refused));
}
