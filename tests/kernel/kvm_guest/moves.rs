//! Slots that move, are taken out, cannot follow, and log what the guest stores.

use super::guest::{BAR, BAR_LEN, Mode, PATTERN, Word, code, kvm_or_skip};
use super::{SLOT, bar, guest, load, mapping, one_round, ones};
use crate::support;
use nix::errno::Errno;
use revocable_mmio::Strategy;
use revocable_mmio::kvm::{MemslotError, Retention, WhenDisabled};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

const ELSEWHERE: u64 = 0x10_0000;

#[test]
fn a_slot_moves_with_its_bar_and_stays_where_it_is_if_that_place_is_taken() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in [Retention::AllOnes, Retention::Remove] {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) =
            guest(&kvm, Mode::Protected, code::LOADS_32, WhenDisabled::UnsupportedRequest);
        let slot = slots.add(SLOT, BAR, ones(&bar), retention).expect("the slot is free");
        // RAM is there: this set does not know of it, KVM does.
        let refused = slot.move_to(0x8000);
        assert!(
            matches!(&refused, Err(MemslotError::Vm { source, .. }) if source.errno == Errno::EEXIST),
            "{refused:?}"
        );
        assert_eq!(slot.range(), BAR..BAR + BAR_LEN as u64);
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{retention:?}: it stays");
        assert!(matches!(slot.move_to(0x8001), Err(MemslotError::Unaligned { .. })));

        slot.move_to(ELSEWHERE).expect("the place is free");
        assert_eq!(slot.stats().removals, 0, "in one step");
        assert_eq!(slot.range().start, ELSEWHERE);
        guest.ram.set(Word::AT, u32::try_from(ELSEWHERE - BAR).expect("low") + 0x80);
        assert_eq!(load(&mut guest, &mut exits), Ok(PATTERN), "{retention:?}: the guest finds it there");

        bar.disable().expect("nothing is in the way");
        slot.move_to(BAR).expect("the place is free");
        guest.ram.set(Word::AT, 0x80);
        assert_eq!(load(&mut guest, &mut exits), Ok(u32::MAX), "{retention:?}: disabled");
        bar.enable().expect("it comes back");
        assert_eq!(one_round(&mut guest, &mut exits), Ok(0), "{retention:?}: memory, without an exit");
        assert_eq!(guest.ram.get(Word::VALUE), PATTERN);
    }
}

#[test]
fn only_installed_slots_are_in_the_way_and_enable_tells_of_one_that_cannot_come_back() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let (first, second) = (bar(Strategy::Detach), bar(Strategy::Detach));
    second.owner().write::<u32>(0x80, 2).expect("the owner's view");
    let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::UnsupportedRequest);
    let told = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&told);
    slots.on_error(move |error| {
        assert!(matches!(error, MemslotError::Overlap { slot: SLOT, other: 2, .. }), "{error}");
        count.fetch_add(1, Ordering::SeqCst);
    });
    let slot = slots.add(SLOT, BAR, mapping(&first), Retention::Remove).expect("the slot is free");
    let refused = slots.add(2, BAR, mapping(&second), Retention::Remove);
    assert!(matches!(refused, Err(MemslotError::Overlap { other: SLOT, .. })), "{refused:?}");
    drop(refused);
    first.disable().expect("nothing is in the way");
    let mut other = slots.add(2, BAR, mapping(&second), Retention::Remove).expect("the first one is out");
    assert_eq!(load(&mut guest, &mut exits), Ok(2), "the guest reaches the one that is there");

    first.enable().expect("the memory is enabled all the same");
    assert_eq!(told.load(Ordering::SeqCst), 1, "told before enable() returned");
    assert!(!slot.is_installed());
    assert_eq!(slot.stats().degraded, 1);
    assert!(matches!(slot.retry(), Err(MemslotError::Overlap { .. })), "it is still in the way");
    other.remove().expect("KVM takes it out");
    assert!(!other.is_installed());
    other.remove().expect("once is enough");
    slot.retry().expect("the place is free now");
    assert_eq!(one_round(&mut guest, &mut exits), Ok(0), "memory, without an exit");
    assert_eq!(guest.ram.get(Word::VALUE), PATTERN);
}

#[test]
fn adding_tries_the_slot_even_where_it_is_not_to_be_installed_yet() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    let bar = bar(Strategy::Detach);
    bar.disable().expect("nothing is in the way");
    let (_guest, slots, _) = guest(&kvm, Mode::Real, code::LOADS_16, WhenDisabled::Fail);
    let refused = slots.add(SLOT, 0x8000, mapping(&bar), Retention::Remove);
    assert!(matches!(&refused, Err(MemslotError::Vm { source, .. }) if source.errno == Errno::EEXIST), "{refused:?}");
    drop(refused);
    let slot = slots.add(SLOT, BAR, mapping(&bar), Retention::Remove).expect("nothing was left behind");
    assert!(!slot.is_installed(), "out while the region is disabled");
    let sigbus = slots.add(2, ELSEWHERE, mapping(&bar), Retention::default());
    assert!(matches!(sigbus, Err(MemslotError::Mapping(_))), "no ones in it: {sigbus:?}");
}

#[test]
fn the_dirty_log_stays_with_the_slot_or_is_declared_lost() {
    support::start();
    let Some(kvm) = kvm_or_skip() else { return };
    for retention in [Retention::AllOnes, Retention::Remove] {
        let bar = bar(Strategy::Detach);
        let (mut guest, slots, mut exits) = guest(&kvm, Mode::Real, code::STORES_16, WhenDisabled::UnsupportedRequest);
        let slot = slots.add(SLOT, BAR, ones(&bar), retention).expect("the slot is free");
        slot.log_dirty(true).expect("KVM logs");
        assert_eq!(slot.stats().removals, 0, "in one step");
        guest.ram.set(Word::AT, 0x3080);
        one_round(&mut guest, &mut exits).expect("every exit is handled");
        bar.disable().expect("nothing is in the way");
        bar.enable().expect("it comes back");
        slot.move_to(ELSEWHERE).expect("the place is free");
        let log = guest.vm.get_dirty_log(SLOT, BAR_LEN).expect("KVM keeps it");
        let lost = slot.take_log_lost();
        assert_eq!(lost, retention == Retention::Remove, "{retention:?}");
        assert_eq!(log.first().is_some_and(|word| word & (1 << 3) != 0), !lost, "{retention:?}: {log:x?}");
        assert!(!slot.take_log_lost(), "told once");
    }
}
