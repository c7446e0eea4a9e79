//! A guest whose memslot is a real BAR: the kernel revokes, the VMM revokes, and the guest goes on.

use crate::guest::{BAR as GPA, BAR_LEN, Guest, Mode, PATTERN, Word, code, kvm_or_skip};
use crate::rig::{BAR, MEMORY, rig};
use kvm_ioctls::VcpuExit;
use revocable_mmio::kvm::{ExitError, ExitHandler, Handled, Memslots, Retention, WhenDisabled};
use revocable_mmio::{CancelToken, MapOptions};
use std::sync::Arc;

const SLOT: u32 = 1;

/// Enters the guest until it has made its load; what it found, and how many exits it took.
fn load(guest: &mut Guest, exits: &mut ExitHandler) -> Result<(u32, u64), ExitError> {
    let mut count = 0;
    loop {
        match exits.handle(guest.vcpu.run())? {
            Handled::Reenter => count += 1,
            Handled::Again => {
                assert!(matches!(exits.again(&mut guest.vcpu)?, Handled::Reenter));
                count += 1;
            }
            Handled::Other(Ok(VcpuExit::IoOut(0x10 | 0x11, _))) => return Ok((guest.ram.get(Word::VALUE), count)),
            other => panic!("the VMM would die of it: {other:?}"),
        }
    }
}

#[test]
fn a_guests_loads_of_a_revoked_bar_read_all_ones_whoever_revokes() {
    let Some(rig) = rig() else { return };
    let Some(kvm) = kvm_or_skip() else { return };
    let opened = rig.open(MEMORY);
    opened.turn(true);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    for retention in [Retention::Remove, Retention::Keep] {
        let mapping = Arc::new(region.map(MapOptions::new().len(BAR_LEN)).expect("a mapping"));
        mapping.write(0x80, PATTERN).expect("on");
        let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
        guest.ram.set(Word::COUNT, 1);
        guest.ram.set(Word::AT, 0x80);
        let slots = Memslots::new(Arc::clone(&guest.vm));
        let mut exits = ExitHandler::new(slots.clone(), WhenDisabled::UnsupportedRequest, CancelToken::new());
        let slot = slots.add(SLOT, GPA, Arc::clone(&mapping), retention).expect("the slot is free");
        for round in 0..20 {
            let (value, count) = load(&mut guest, &mut exits).expect("on and enabled");
            assert_eq!((value, count), (PATTERN, 0), "round {round}: no exit");
            match round % 4 {
                0 => {
                    opened.turn(false);
                    assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(u32::MAX), "{retention:?}");
                    assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(u32::MAX), "{retention:?}");
                    opened.turn(true);
                }
                1 => {
                    region.disable().expect("disable");
                    assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(u32::MAX), "{retention:?}");
                    region.enable().expect("enable");
                }
                2 => {
                    opened.turn(false);
                    region.disable().expect("disable");
                    assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(u32::MAX), "{retention:?}");
                    region.enable().expect("enable");
                    assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(u32::MAX), "{retention:?}");
                    opened.turn(true);
                }
                _ => region.reset(|_| ()).expect("reset"),
            }
            // The first load may find the slot out, and puts it back.
            assert_eq!(
                load(&mut guest, &mut exits).map(|(value, _)| value),
                Ok(PATTERN),
                "{retention:?} round {round}"
            );
            assert!(slot.is_installed());
        }
    }
}

#[test]
fn a_vmm_that_asked_for_an_error_gets_one_where_nothing_would_end_a_wait() {
    let Some(rig) = rig() else { return };
    let Some(kvm) = kvm_or_skip() else { return };
    let opened = rig.open(MEMORY);
    let bar = opened.bar(BAR);
    let region = bar.region().expect("one region");
    for when in [WhenDisabled::Fail, WhenDisabled::Wait] {
        let mapping = Arc::new(region.map(MapOptions::new().len(BAR_LEN)).expect("a mapping"));
        mapping.write(0x80, PATTERN).expect("on");
        let mut guest = Guest::new(&kvm, Mode::Real, code::LOADS_16);
        guest.ram.set(Word::COUNT, 1);
        guest.ram.set(Word::AT, 0x80);
        let slots = Memslots::new(Arc::clone(&guest.vm));
        let mut exits = ExitHandler::new(slots.clone(), when, CancelToken::new());
        let _slot = slots.add(SLOT, GPA, mapping, Retention::Keep).expect("the slot is free");
        assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(PATTERN));
        opened.turn(false);
        let refused = load(&mut guest, &mut exits);
        assert!(matches!(refused, Err(ExitError::Disabled { slot: Some(SLOT), .. })), "{refused:?}");
        opened.turn(true);
        assert_eq!(load(&mut guest, &mut exits).map(|(value, _)| value), Ok(PATTERN));
    }
}
