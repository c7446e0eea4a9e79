//! The memslots of a BAR's areas.
#![expect(unsafe_code, reason = "an implementor of SetMemslot")]

use super::{Registers, SIZE, in_map, memory};
use crate::support;
use crate::support::memory_map::Map;
use revocable_mmio::Region;
use revocable_mmio::bar::{Areas, Bar, BarError};
use revocable_mmio::memslot::{MemslotError, Memslots, Retention, SetMemslot, SlotMemory};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, OnceLock};

const HERE: u64 = 0xe000_0000;
const THERE: u64 = 0xe800_0000;

fn there(map: &Map) -> Vec<(u32, u64)> {
    let mut there: Vec<_> = map.slots.lock().expect("no panic").iter().map(|slot| (slot.slot, slot.gpa)).collect();
    there.sort_unstable();
    there
}

#[test]
fn they_are_where_the_bar_is_and_come_and_go_with_the_areas() {
    support::start();
    let (bar, map) = in_map(Retention::AllOnes);
    let bar = bar.area(0, memory()).build().expect("a BAR");
    let blob = bar.areas().insert(0x8000, memory()).expect("it is free");
    assert_eq!(there(&map), [], "the guest has it nowhere");
    bar.areas().move_to(Some(HERE)).expect("nothing is there");
    assert_eq!(there(&map), [(8, HERE), (9, HERE + 0x8000)]);
    bar.disable().expect("nothing is in the way");
    let second = bar.areas().insert(0x1_0000, memory()).expect("in any state");
    assert_eq!(there(&map), [(8, HERE), (9, HERE + 0x8000), (10, HERE + 0x1_0000)], "ones stand in it");
    drop(blob);
    assert_eq!(there(&map), [(8, HERE), (10, HERE + 0x1_0000)]);
    bar.areas().move_to(Some(THERE)).expect("nothing is there");
    bar.enable().expect("it comes back");
    let third = bar.areas().insert(0x8000, memory()).expect("it is free again");
    assert_eq!(there(&map), [(8, THERE), (9, THERE + 0x8000), (10, THERE + 0x1_0000)], "the number is used again");
    // By less than its size: no slot may be in the way of another.
    bar.areas().move_to(Some(THERE + 0x8000)).expect("nothing else is there");
    assert_eq!(there(&map).iter().map(|(_, at)| at - THERE).sum::<u64>(), 0x8000 + 0x1_0000 + 0x1_8000);
    assert_eq!(bar.areas().guest_address(), Some(THERE + 0x8000));
    bar.areas().move_to(None).expect("it has no errors");
    assert_eq!((there(&map), bar.areas().guest_address()), (vec![], None));
    bar.areas().move_to(Some(HERE)).expect("nothing is there");
    drop(bar);
    assert_eq!(there(&map), [], "they go with the BAR");
    drop((second, third));
}

#[test]
fn retentions_are_as_for_every_memslot() {
    support::start();
    for (retention, left) in [(Retention::AllOnes, 1), (Retention::Keep, 1), (Retention::Remove, 0)] {
        let (bar, map) = in_map(retention);
        let bar = bar.area(0, memory()).build().expect("a BAR");
        bar.areas().move_to(Some(HERE)).expect("nothing is there");
        bar.disable().expect("nothing is in the way");
        assert_eq!(there(&map).len(), left, "{retention:?}");
        let blob = bar.areas().insert(0x8000, memory()).expect("in any state");
        assert_eq!(there(&map).len(), 2 * left, "{retention:?}");
        bar.reset(|_| assert_eq!(there(&map).len(), 2 * left)).expect("nothing is in the way");
        bar.enable().expect("it comes back");
        assert_eq!(there(&map).len(), 2, "{retention:?}");
        drop(blob);
    }
}

#[test]
fn what_is_refused_leaves_nothing_behind() {
    support::start();
    let (bar, map) = in_map(Retention::AllOnes);
    let bar = bar.trap(0x1000..0x1001, Arc::new(Registers::default())).build().expect("a BAR");
    let areas = bar.areas();
    areas.move_to(Some(HERE)).expect("there is no slot");
    map.refuses.store(1, Ordering::SeqCst);
    let refused = areas.insert(0, memory()).expect_err("the virtual machine refuses");
    assert!(matches!(refused, BarError::Memslot(MemslotError::Vm { .. })), "{refused}");
    assert_eq!((there(&map), areas.ranges().len()), (vec![], 0));

    // Around the trap there are two slots; the second is refused, and the first goes too.
    let first = areas.insert(0, memory()).expect("the virtual machine agrees");
    assert_eq!(there(&map), [(8, HERE), (9, HERE + 0x2000)]);
    let _more = [areas.insert(0x8000, memory()), areas.insert(0x1_0000, memory())].map(|area| area.expect("free"));
    let used_up = areas.insert(0x1_8000, memory()).expect_err("there are four numbers");
    assert!(matches!(used_up, BarError::OutOfMemslots { needed: 1, left: 0 }), "{used_up}");
    drop(first);
    let again = areas.insert(0, memory()).expect("its numbers are free");

    // A move that is refused in the middle: the guest has the BAR nowhere.
    map.refuses.store(1, Ordering::SeqCst);
    let refused = areas.move_to(Some(THERE)).expect_err("the virtual machine refuses");
    assert!(matches!(refused, BarError::Memslot(_)), "{refused}");
    assert_eq!((there(&map), areas.guest_address()), (vec![], None));
    let refused = areas.move_to(Some(THERE + 1)).expect_err("no page begins there");
    assert!(matches!(refused, BarError::Memslot(MemslotError::Unaligned { .. })), "{refused}");
    assert!(areas.move_to(Some(u64::MAX - 0xfff)).is_err(), "it would wrap");
    areas.move_to(Some(THERE)).expect("the virtual machine agrees");
    assert_eq!(there(&map).len(), 4);
    drop(again);
}

#[test]
fn a_slot_that_cannot_be_taken_out_keeps_its_area_and_at_last_its_number() {
    support::start();
    let (bar, map) = in_map(Retention::AllOnes);
    let bar = bar.build().expect("a BAR");
    bar.areas().move_to(Some(HERE)).expect("there is no slot");
    let mut area = bar.areas().insert(0, memory()).expect("it is free");
    map.refuses_removals.store(1, Ordering::SeqCst);
    assert!(matches!(area.remove(), Err(BarError::Memslot(_))));
    assert_eq!((there(&map), bar.areas().ranges().len()), (vec![(8, HERE)], 1), "as before");
    area.remove().expect("the virtual machine agrees");
    area.remove().expect("it is gone already");
    assert_eq!((there(&map), bar.areas().ranges().len()), (vec![], 0));

    let area = bar.areas().insert(0, memory()).expect("it is free");
    map.refuses_removals.store(usize::MAX, Ordering::SeqCst);
    drop(area);
    map.refuses_removals.store(0, Ordering::SeqCst);
    assert_eq!(there(&map), [(8, HERE)], "the guest still reaches that address range");
    let next = bar.areas().insert(0x8000, memory()).expect("it is free");
    assert_eq!(there(&map), [(8, HERE), (9, HERE + 0x8000)], "its number is not used again");
    drop(next);
}

#[test]
fn a_slot_that_could_not_follow_is_tried_again() {
    support::start();
    let (bar, map) = in_map(Retention::Remove);
    let bar = bar.area(0, memory()).build().expect("a BAR");
    bar.areas().move_to(Some(HERE)).expect("nothing is there");
    bar.disable().expect("nothing is in the way");
    map.refuses.store(1, Ordering::SeqCst);
    let _ = bar.enable();
    assert_eq!((there(&map), bar.is_enabled()), (vec![], true));
    bar.areas().retry_memslots().expect("the virtual machine agrees");
    assert_eq!(there(&map), [(8, HERE)]);
}

#[test]
fn the_log_is_switched_for_all_and_for_those_that_come_and_its_loss_is_told() {
    support::start();
    let (bar, map) = in_map(Retention::Remove);
    let bar = bar.area(0, memory()).build().expect("a BAR");
    bar.areas().move_to(Some(HERE)).expect("nothing is there");
    bar.areas().log_dirty(true).expect("the virtual machine agrees");
    let later = bar.areas().insert(0x8000, memory()).expect("it is free");
    assert!(map.slots.lock().expect("no panic").iter().all(|slot| slot.log_dirty));
    let _ = bar.areas().take_log_lost(); // this map changes no slot in place
    assert!(!bar.areas().take_log_lost());
    drop(later);
    assert!(bar.areas().take_log_lost(), "of an area that is gone");
    bar.disable().expect("nothing is in the way");
    assert!(bar.areas().take_log_lost(), "taken out");
    bar.enable().expect("it comes back");
    assert!(map.slots.lock().expect("no panic").iter().all(|slot| slot.log_dirty));
}

/// Calls the BAR from inside of a change of the memory map.
#[derive(Default)]
struct CallsBack {
    areas: OnceLock<Areas>,
    heard: Mutex<Vec<String>>,
}

impl SetMemslot for CallsBack {
    unsafe fn install(&self, _: &SlotMemory) -> io::Result<()> {
        let Some(areas) = self.areas.get() else { return Ok(()) };
        let calls = [areas.insert(0x8000, Region::builder(0x1000)).map(drop), areas.move_to(Some(THERE))];
        let mut heard = self.heard.lock().expect("no panic");
        heard.extend(calls.into_iter().map(|call| call.expect_err("it is in the middle of a change").to_string()));
        drop(heard);
        areas.move_to(None).expect("it has no errors");
        Ok(())
    }

    fn remove(&self, _: &SlotMemory) -> io::Result<()> {
        self.areas.get().map_or(Ok(()), |areas| areas.move_to(None)).map_err(io::Error::other)
    }
}

#[test]
fn a_virtual_machine_that_calls_back_is_refused_or_heard_at_the_end() {
    support::start();
    let vm = Arc::new(CallsBack::default());
    let bar = Bar::builder(SIZE).memslots(&Memslots::new(Arc::clone(&vm)), 0..8, Retention::AllOnes);
    let bar = bar.build().expect("a BAR");
    bar.areas().move_to(Some(HERE)).expect("there is no slot");
    let _ = vm.areas.set(bar.areas().clone());
    let _area = bar.areas().insert(0, memory()).expect("it is free");
    assert_eq!(vm.heard.lock().expect("no panic").len(), 2);
    assert_eq!(bar.areas().guest_address(), None, "it was moved away at the end of the insertion");
}
