//! The outcomes of exits.

use super::guest::{BAR, Mode, PATTERN, Word, code, kvm_or_skip};
use super::{RETENTIONS, SLOT, bar, guest, load, mapping, one_round};
use crate::support;
use kvm_ioctls::VcpuExit;
use revocable_mmio::Strategy;
use revocable_mmio::kvm::{ExitError, Handled, Retention, WhenDisabled};

#[test]
fn fail_hands_the_access_to_the_vmm_with_its_slot() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in RETENTIONS {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
        let _slot = slots.add(SLOT, BAR, mapping(&bar), retention).expect("the slot is free");
        bar.disable().expect("nothing is in the way");
        match load(&mut guest, &mut exits) {
            Err(ExitError::Disabled { slot: Some(SLOT), gpa }) => assert!(gpa.is_none_or(|gpa| gpa == BAR + 0x80)),
            other => panic!("{retention:?}: {other:?}"),
        }
        drop(bar);
        let again = match exits.again(&mut guest.vcpu) {
            Ok(_) => load(&mut guest, &mut exits),
            Err(e) => Err(e),
        };
        match again {
            Err(ExitError::Gone { slot: Some(SLOT), .. }) => {}
            other => panic!("{retention:?}: {other:?}"),
        }
    }
}

/// With nested paging `KVM_RUN` returns this. Here it is passed in, so that the test runs on any machine.
#[test]
fn an_efault_takes_a_kept_slot_out_so_that_the_access_comes_back_with_its_address() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let efault = || Err(kvm_ioctls::Error::new(nix::libc::EFAULT));
    let bar = bar(Strategy::Detach);
    let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Keep).expect("the slot is free");
    bar.disable().expect("nothing is in the way");
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
    assert!(matches!(exits.handle(efault()), Ok(Handled::Other(Err(_)))), "without slots it belongs to no slot");
    let _slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Keep).expect("the slot is free");
    let mut tries = 0;
    while let Ok(Handled::Reenter) = exits.handle(efault()) {
        tries += 1;
        assert!(tries < 100, "for ever");
    }
    assert!(matches!(exits.handle(efault()), Ok(Handled::Other(Err(e))) if e.errno() == nix::libc::EFAULT));
    let unknown = Ok(VcpuExit::MemoryFault { flags: 0, gpa: 0x10_0000, size: 0x1000 });
    assert!(matches!(exits.handle(unknown), Ok(Handled::Other(Ok(VcpuExit::MemoryFault { .. })))));
    bar.disable().expect("nothing is in the way");
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
