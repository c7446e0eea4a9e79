//! A real guest on /dev/kvm: G1 and G2 as the guest sees them, and what its accesses come out as.
//!
//! Which kind of exit a revoked page of a kept slot gives depends on the machine; the tests print what they met.
#![cfg(target_arch = "x86_64")]
#![expect(unsafe_code, reason = "an implementor of SetMemslot passes on an unsafe contract; signals kick a vCPU")]

#[path = "../support/guest/mod.rs"]
mod guest;

use crate::support;
use guest::{BAR, BAR_LEN, Guest, Mode, PATTERN, Ram, Word, code, kvm_or_skip, verdict};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{VcpuExit, VmFd};
use nix::errno::Errno;
use nix::sys::pthread::{pthread_kill, pthread_self};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use revocable_mmio::kvm::{
    ExitError, ExitHandler, Handled, MemslotError, Memslots, Retention, SetMemslot, WhenDisabled,
};
use revocable_mmio::{CancelToken, MapOptions, Mapping, Monitor, OnDisabled, Region, Strategy};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

const STRATEGIES: [Strategy; 3] = [Strategy::Zap, Strategy::Detach, Strategy::Replace];
const RETENTIONS: [Retention; 2] = [Retention::Remove, Retention::Keep];
const SLOT: u32 = 1;

fn bar(strategy: Strategy) -> Region {
    let bar = Region::builder(BAR_LEN).strategy(strategy).build().expect("the strategy is there");
    for page in 0..BAR_LEN / 0x1000 {
        let value = PATTERN + 0x1000 * u32::try_from(page).expect("16 pages");
        bar.owner().write::<u32>(page * 0x1000 + 0x80, value).expect("the owner's view");
    }
    bar
}

fn mapping(bar: &Region) -> Arc<Mapping> {
    Arc::new(bar.map(MapOptions::new()).expect("it maps"))
}

/// A guest whose `ds` is the BAR, and the handler of its exits.
fn guest(kvm: &kvm_ioctls::Kvm, mode: Mode, code: &[u8], when: WhenDisabled) -> (Guest, Memslots, ExitHandler) {
    let guest = Guest::new(kvm, mode, code);
    guest.ram.set(Word::COUNT, 1);
    guest.ram.set(Word::AT, 0x80);
    let slots = Memslots::new(Arc::clone(&guest.vm));
    let exits = ExitHandler::new(slots.clone(), when, CancelToken::new());
    (guest, slots, exits)
}

/// Enters the guest until it tells a port, and answers how many exits there were on the way.
fn one_round(guest: &mut Guest, exits: &mut ExitHandler) -> Result<u64, ExitError> {
    let mut count = 0;
    loop {
        match exits.handle(guest.vcpu.run())? {
            Handled::Reenter => count += 1,
            Handled::Other(Ok(VcpuExit::IoOut(0x10 | 0x11, _))) => return Ok(count),
            other => panic!("unexpected: {other:?}"),
        }
    }
}

fn load(guest: &mut Guest, exits: &mut ExitHandler) -> Result<u32, ExitError> {
    one_round(guest, exits).map(|_| guest.ram.get(Word::VALUE))
}

/// Disables and enables until the guest has seen enough of both, and ends it.
fn toggle(bar: &Region, ram: &Ram, vcpu_ended: &AtomicBool, enough: u32) -> u32 {
    let since = Instant::now();
    let mut state = 0;
    let mut tell = || {
        state += 1;
        ram.set(Word::STATE, state);
    };
    let mut cycles = 0;
    while cycles < enough || ram.get(Word::SEEN_ONES) < 1000 || ram.get(Word::SEEN_GOOD) < 1000 {
        if vcpu_ended.load(Ordering::SeqCst) || since.elapsed() > Duration::from_secs(60) {
            break;
        }
        tell();
        assert!(bar.disable().expect("nobody is in the way"));
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
            // Taking a slot out waits for KVM's grace periods, which a loaded machine makes long.
            let enough = if retention == Retention::Keep { 2000 } else { 500 };
            let ended = AtomicBool::new(false);
            let (ram, since) = (guest.ram.clone(), Instant::now());
            let (mut mmio, mut efault) = (0u64, 0u64);
            let cycles = thread::scope(|scope| {
                let host = scope.spawn(|| toggle(&bar, &ram, &ended, enough));
                loop {
                    let exit = guest.vcpu.run();
                    match &exit {
                        Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => mmio += 1,
                        Ok(VcpuExit::MemoryFault { .. }) | Err(_) => efault += 1,
                        _ => {}
                    }
                    match exits.handle(exit).expect("every access can be answered") {
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
            assert!(cycles >= enough, "{strategy} {retention:?}: {cycles} cycles in a minute");
            assert!(ones >= 1000 && good >= 1000, "{strategy} {retention:?}: the guest saw too little: {ones}, {good}");
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

/// Runs the checking guest over a BAR that the host lies about, and answers what the guest says.
fn lied_to(lie: impl FnOnce(&Region, &Ram) + Send) -> u32 {
    let kvm = guest::kvm().expect("asked before");
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
        bar.disable().expect("nobody is in the way");
        for page in 0..BAR_LEN / 0x1000 {
            bar.owner().write::<u32>(page * 0x1000 + 0x80, 0).expect("the owner's view");
        }
        bar.enable().expect("it comes back");
        ram.set(Word::STATE, 4);
    });
    assert_eq!(lost, 4, "{}", verdict(lost));
    let refused = lied_to(|bar, _| assert!(bar.disable().expect("nobody is in the way")));
    assert!(matches!(refused, 2 | 4), "{}", verdict(refused));
}

#[test]
fn a_refused_load_reads_all_ones_and_a_refused_store_is_dropped() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::STORES_16, WhenDisabled::UnsupportedRequest);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        guest.ram.set(Word::STORED, 7);
        assert_eq!(one_round(&mut guest, &mut exits), Ok(0), "an enabled BAR costs no exit");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7));
        bar.disable().expect("nobody is in the way");
        guest.ram.set(Word::STORED, 8);
        assert!(one_round(&mut guest, &mut exits).expect("an answer") >= 1);
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7), "{strategy} {retention:?}: dropped");
        bar.enable().expect("it comes back");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(7), "{strategy} {retention:?}: dropped for good");
        one_round(&mut guest, &mut exits).expect("an answer");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(8));
    }
}

#[test]
fn an_access_that_waits_goes_on_with_enable_and_the_guest_sees_nothing_of_it() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for (strategy, retention) in STRATEGIES.into_iter().flat_map(|s| RETENTIONS.map(|r| (s, r))) {
        let bar = bar(strategy);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Wait);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        bar.disable().expect("nobody is in the way");
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
        bar.disable().expect("nobody is in the way");
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                kick.cancel()
            });
            let exit = guest.vcpu.run();
            assert!(matches!(exits.handle(exit), Ok(Handled::Cancelled)), "{strategy} {retention:?}");
        });
        // The VMM does what it kicked the vCPU for, and goes on.
        exits.set_cancel(CancelToken::new());
        bar.enable().expect("it comes back");
        assert!(matches!(exits.again(&mut guest.vcpu), Ok(Handled::Reenter)));
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{strategy} {retention:?}: no all-ones slipped in");
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
        bar.disable().expect("nobody is in the way");
        let vcpu = pthread_self();
        let kicked = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(30));
                // Again and again: a signal between two entries interrupts nothing.
                while !kicked.load(Ordering::SeqCst) {
                    pthread_kill(vcpu, Signal::SIGUSR1).expect("the thread lives");
                    thread::sleep(Duration::from_millis(1));
                }
            });
            let since = Instant::now();
            loop {
                match exits.handle(guest.vcpu.run()).expect("an answer") {
                    Handled::Other(Err(e)) if e.errno() == nix::libc::EINTR => break,
                    Handled::Reenter | Handled::Other(Ok(VcpuExit::IoOut(..))) => {}
                    other => panic!("unexpected: {other:?}"),
                }
                assert!(since.elapsed() < Duration::from_secs(10), "{strategy} {retention:?}: not to be kicked");
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

#[test]
fn fail_hands_the_access_to_the_vmm_with_its_slot() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        bar.disable().expect("nobody is in the way");
        match load(&mut guest, &mut exits) {
            Err(ExitError::Disabled { slot: SLOT, gpa }) => assert!(gpa.is_none_or(|gpa| gpa == BAR + 0x80)),
            other => panic!("{retention:?}: {other:?}"),
        }
        drop(bar);
        let again = match exits.again(&mut guest.vcpu) {
            Ok(_) => load(&mut guest, &mut exits),
            Err(e) => Err(e),
        };
        match again {
            Err(ExitError::Gone { slot: SLOT, .. }) => {}
            other => panic!("{retention:?}: {other:?}"),
        }
    }
}

/// With nested paging this is what `KVM_RUN` gives; here it is handed in, whatever the machine.
#[test]
fn an_efault_takes_a_kept_slot_out_so_that_the_access_comes_back_with_its_address() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let efault = || Err(kvm_ioctls::Error::new(nix::libc::EFAULT));
    let bar = bar(Strategy::Detach);
    let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Keep).expect("the slot is free");
    bar.disable().expect("nobody is in the way");
    assert!(slot.is_installed());
    assert!(matches!(exits.handle(efault()), Ok(Handled::Reenter)));
    assert!(!slot.is_installed(), "taken out");
    assert_eq!(slot.stats().withdrawn, 1);
    assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX));
    bar.enable().expect("it comes back");
    assert!(slot.is_installed(), "and put back");
    assert_eq!(one_round(&mut guest, &mut exits), Ok(0));
    assert_eq!(guest.ram.get(Word::VALUE), PATTERN);
}

#[test]
fn an_efault_that_is_nobodys_reaches_the_vmm_after_a_few_tries() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let efault = || Err(kvm_ioctls::Error::new(nix::libc::EFAULT));
    let bar = bar(Strategy::Detach);
    let (_guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
    assert!(matches!(exits.handle(efault()), Ok(Handled::Other(Err(_)))), "no slots, nobody's");
    let _slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Keep).expect("the slot is free");
    let mut tries = 0;
    while let Ok(Handled::Reenter) = exits.handle(efault()) {
        tries += 1;
        assert!(tries < 100, "for ever");
    }
    assert!(matches!(exits.handle(efault()), Ok(Handled::Other(Err(e))) if e.errno() == nix::libc::EFAULT));
    let unknown = Ok(VcpuExit::MemoryFault { flags: 0, gpa: 0x10_0000, size: 0x1000 });
    assert!(matches!(exits.handle(unknown), Ok(Handled::Other(Ok(VcpuExit::MemoryFault { .. })))));
    bar.disable().expect("nobody is in the way");
    let ours = Ok(VcpuExit::MemoryFault { flags: 0, gpa: BAR + 4, size: 0x1000 });
    assert!(matches!(exits.handle(ours), Ok(Handled::Reenter)));
}

#[test]
fn an_mmio_exit_that_comes_late_is_made_on_enabled_memory() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let bar = bar(Strategy::Detach);
    let (_guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Remove).expect("the slot is free");
    for (len, at) in [(1, 0x41), (2, 0x42), (4, 0x44), (8, 0x48), (2, 0x51), (4, 0x52), (8, 0x54), (3, 0x60)] {
        let bytes: Vec<u8> = (1..=len).collect();
        assert!(matches!(exits.handle(Ok(VcpuExit::MmioWrite(BAR + at, &bytes))), Ok(Handled::Reenter)));
        let mut back = vec![0; usize::from(len)];
        assert!(matches!(exits.handle(Ok(VcpuExit::MmioRead(BAR + at, &mut back))), Ok(Handled::Reenter)));
        assert_eq!(back, bytes, "{len} bytes at {at:#x}");
    }
    assert_eq!(bar.owner().read::<u32>(0x44), Ok(0x0403_0201));
    assert_eq!(slot.stats().served, 16);
    let mut data = [0; 4];
    let elsewhere = exits.handle(Ok(VcpuExit::MmioRead(BAR - 4, &mut data)));
    assert!(matches!(elsewhere, Ok(Handled::Other(Ok(VcpuExit::MmioRead(_, _))))), "not a slot's");
}

/// A virtual machine that refuses changes of its memory map on request.
struct Stubborn {
    vm: Arc<VmFd>,
    refuses: AtomicBool,
}

impl SetMemslot for Stubborn {
    unsafe fn set(&self, slot: &kvm_userspace_memory_region) -> std::io::Result<()> {
        if self.refuses.load(Ordering::SeqCst) {
            return Err(Errno::ENOMEM.into());
        }
        // SAFETY: by this function's own contract.
        unsafe { self.vm.as_ref().set(slot) }
    }
}

#[test]
fn a_memory_map_that_cannot_change_revokes_all_the_same_and_the_handler_makes_the_accesses() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let bar = bar(Strategy::Detach);
    let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
    guest.ram.set(Word::COUNT, 1);
    guest.ram.set(Word::AT, 0x80);
    let vm = Arc::new(Stubborn { vm: Arc::clone(&guest.vm), refuses: AtomicBool::new(false) });
    let slots = Memslots::new(Arc::clone(&vm));
    let mut exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Remove).expect("the slot is free");

    vm.refuses.store(true, Ordering::SeqCst);
    bar.disable().expect("the memory map is not what revokes");
    assert!(slot.is_installed(), "it could not be taken out");
    vm.refuses.store(false, Ordering::SeqCst);
    assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX), "revoked all the same");
    let _ = bar.enable().expect("it comes back");
    bar.disable().expect("nobody is in the way");
    assert!(!slot.is_installed());
    vm.refuses.store(true, Ordering::SeqCst);
    bar.enable().expect("the memory map is not what restores");
    assert!(!slot.is_installed(), "it could not be put back");
    assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "the handler makes the access");
    assert_eq!(slot.stats().degraded, 2);
    vm.refuses.store(false, Ordering::SeqCst);
}

#[test]
fn an_event_loop_that_answers_faults_can_disable_while_a_vcpu_faults() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    // The vCPU waits in a page fault that only this thread answers, and KVM waits for the vCPU before it takes the
    // memslot out: `disable` has to answer it on the way.
    for retention in RETENTIONS {
        let monitor = Monitor::manual().expect("a userfaultfd");
        let bar = Region::builder(BAR_LEN).strategy(Strategy::Zap).monitor(monitor.clone()).build().expect("zap");
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Wait);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        for _ in 0..20 {
            thread::scope(|scope| {
                let vcpu = scope.spawn(|| load(&mut guest, &mut exits));
                thread::sleep(Duration::from_millis(2));
                bar.disable_timeout(Duration::from_secs(10)).expect("nobody is in the way");
                bar.enable().expect("it comes back");
                let since = Instant::now();
                while !vcpu.is_finished() {
                    monitor.handle_ready(16).expect("the monitor lives");
                    assert!(since.elapsed() < Duration::from_secs(10), "{retention:?}: the vCPU hangs");
                }
                assert_eq!(vcpu.join().expect("no panic"), Ok(0));
            });
        }
    }
}

#[test]
fn a_slot_added_while_disabled_starts_revoked() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        bar.disable().expect("nobody is in the way");
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
        let slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX), "{retention:?}");
        bar.enable().expect("it comes back");
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{retention:?}");
        drop(slot);
        let exit = guest.vcpu.run();
        assert!(matches!(exits.handle(exit), Ok(Handled::Other(Ok(VcpuExit::MmioRead(..))))), "the slot is gone");
    }
}

#[test]
fn mappings_that_would_make_a_vcpu_wait_in_the_kernel_are_refused() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let zap = bar(Strategy::Zap);
    let (_guest, slots, _) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
    for options in [MapOptions::new().on_disabled(OnDisabled::Block), MapOptions::new().accessors_only()] {
        let mapping = Arc::new(zap.map(options).expect("it maps"));
        assert!(matches!(slots.add(SLOT, BAR, mapping, Retention::Remove), Err(MemslotError::Mapping(_))));
    }
    let _first = slots.add(SLOT, BAR, mapping(&zap), Retention::Remove).expect("the slot is free");
    for (slot, gpa) in [(SLOT, 0x10_0000), (SLOT + 1, BAR), (SLOT + 1, BAR + 0x1000)] {
        let refused = slots.add(slot, gpa, mapping(&zap), Retention::Remove);
        assert!(matches!(refused, Err(MemslotError::Overlap { other: SLOT, .. })), "{refused:?}");
    }
    let refused = slots.add(SLOT + 1, 0x10_0001, mapping(&zap), Retention::Remove);
    assert!(matches!(refused, Err(MemslotError::Unaligned { .. })), "{refused:?}");
    // Guest RAM is there, of which this set knows nothing: KVM itself refuses.
    let refused = slots.add(SLOT + 1, 0x8000, mapping(&zap), Retention::Remove);
    assert!(matches!(&refused, Err(MemslotError::Kvm { source, .. }) if source.errno == Errno::EEXIST), "{refused:?}");
    drop(refused);
    let _second = slots.add(SLOT + 1, 0x10_0000, mapping(&zap), Retention::Remove).expect("nothing was left behind");
}

#[test]
fn a_read_only_mapping_drops_the_guests_stores() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::STORES_16, WhenDisabled::Fail);
        let rom = Arc::new(bar.map(MapOptions::new().read_only()).expect("it maps"));
        let _slot = slots.add(SLOT, BAR, rom, retention).expect("the slot is free");
        guest.ram.set(Word::STORED, 7);
        assert_eq!(one_round(&mut guest, &mut exits), Ok(1), "one MMIO exit");
        assert_eq!(bar.owner().read::<u32>(0x80), Ok(PATTERN));
    }
}
